"""Evidence: replicates that decide a sweep, measurements that explain it, and the page that shows both."""
