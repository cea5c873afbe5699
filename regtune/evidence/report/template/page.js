"use strict";
// Draws the charts in the colours of the theme, redraws them for another theme, width or paper, and filters trials.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const NARROW = 720;

  const color = (name, share) => {
    if (name === "clear") return "rgba(0, 0, 0, 0)";
    const hex = getComputedStyle(root).getPropertyValue(`--${name}`).trim();
    const n = parseInt(hex.slice(1), 16);
    return share ? `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${share / 100})` : hex;
  };
  const themed = (value) => {
    if (typeof value === "string") {
      const token = /^@([a-z]+)(?:\/(\d+))?$/.exec(value);
      return token ? color(token[1], token[2]) : value;
    }
    if (Array.isArray(value)) return value.map(themed);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one)]));
  };
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const merged = (base, over) => {
    const whole = { ...base };
    for (const [key, value] of Object.entries(over)) {
      whole[key] = isObject(value) && isObject(base[key]) ? merged(base[key], value) : value;
    }
    return whole;
  };

  const draw = (plot) => {
    const { data, layout, narrow } = figures[plot.dataset.figure];
    const whole = plot.clientWidth < NARROW ? merged(layout, narrow) : layout;
    plot.style.height = `${whole.height}px`;
    const shown = themed({ data, layout: { ...whole, width: plot.clientWidth } });
    shown.layout.font.family = getComputedStyle(document.body).fontFamily;
    const before = plot.data && plot.data[0].dimensions;
    if (before) {
      shown.data[0].dimensions.forEach((one, at) => { one.constraintrange = before[at].constraintrange; });
    }
    plot.drawnWidth = plot.clientWidth;
    return Plotly.react(plot, shown.data, shown.layout, { displayModeBar: false, scrollZoom: false });
  };
  const drawAll = () => plots.map(draw);

  // theme
  const button = document.getElementById("theme");
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    button.setAttribute("aria-pressed", String(theme === "dark"));
    drawAll();
  };
  button.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (now) => setTheme(now.matches ? "dark" : "light"));
  let screenTheme = root.dataset.theme;
  addEventListener("beforeprint", () => {
    screenTheme = root.dataset.theme;
    document.body.classList.add("printing");
    setTheme("light");
  });
  addEventListener("afterprint", () => {
    document.body.classList.remove("printing");
    setTheme(screenTheme);
  });

  // width
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => plots.filter((plot) => plot.clientWidth !== plot.drawnWidth).forEach(draw), 120);
  });

  // a link to something inside a closed details opens it
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", reveal);

  // parallel coordinates: which trials are kept
  const lines = plots.find((plot) => plot.dataset.figure === "parallel");
  const within = (value, ranges) =>
    !ranges || (Array.isArray(ranges[0]) ? ranges : [ranges]).some(([low, high]) => low <= value && value <= high);
  const keep = () => {
    const { dimensions, ids } = lines.data[0];
    const kept = ids.filter((_, at) => dimensions.every((one) => within(one.values[at], one.constraintrange)));
    const all = dimensions.every((one) => !one.constraintrange);
    const numbers = new Set(kept);
    const compared = new Set(ids);
    for (const row of document.querySelectorAll("#trials tbody tr")) {
      const number = row.cells[1].textContent;
      row.hidden = !all && !(compared.has(number) && numbers.has(number));
    }
    const named = kept.slice(0, 12).join(", ") + (kept.length > 12 ? " …" : "");
    document.getElementById("kept").textContent =
      all ? "" : `${kept.length} of ${ids.length} trials are kept${kept.length ? `: ${named}` : ""}. The table shows these.`;
  };
  const addFilters = () => {
    const place = document.querySelector("#filters .filters");
    lines.data[0].dimensions.forEach((one, at) => {
      const group = document.createElement("fieldset");
      const legend = document.createElement("legend");
      legend.textContent = one.label;
      group.append(legend);
      const [low, high] = one.range;
      const inputs = ["from", "to"].map((word, end) => {
        const label = document.createElement("label");
        const input = document.createElement("input");
        Object.assign(input, { type: "range", min: 0, max: 100, step: 1, value: end * 100 });
        input.setAttribute("aria-label", `${one.label} ${word}`);
        label.append(word, input);
        group.append(label);
        return input;
      });
      const read = (input) => low + (high - low) * (Number(input.value) / 100);
      const spoken = (value) => {
        if (!one.tickvals) return value.toPrecision(4);
        const near = one.tickvals.reduce((a, b) => (Math.abs(b - value) < Math.abs(a - value) ? b : a));
        return `near ${one.ticktext[one.tickvals.indexOf(near)]}`;
      };
      const output = document.createElement("output");
      group.append(output);
      const change = () => {
        const ends = inputs.map(read).sort((a, b) => a - b);
        inputs.forEach((input) => input.setAttribute("aria-valuetext", spoken(read(input))));
        const whole = ends[0] <= low && ends[1] >= high;
        output.textContent = whole ? "" : ends.map(spoken).join(" to ");
        Plotly.restyle(lines, { [`dimensions[${at}].constraintrange`]: whole ? null : [ends] });
      };
      inputs.forEach((input) => input.addEventListener("input", change));
      place.append(group);
    });
  };

  // the section that is being read
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link) continue;
      if (entry.isIntersecting) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));

  button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  reveal();
  Promise.all(drawAll()).then(() => {
    if (lines) {
      lines.on("plotly_restyle", keep);
      addFilters();
    }
    root.dataset.drawn = String(plots.length);
  });
})();
