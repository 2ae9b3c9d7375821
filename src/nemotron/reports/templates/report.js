(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // "@blue" in a figure stands for the value of --blue in the theme that is on.
  const themed = (value, css) => {
    if (typeof value === "string") return value.startsWith("@") ? css.getPropertyValue("--" + value.slice(1)).trim() : value;
    if (Array.isArray(value)) return value.map((item) => themed(item, css));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, css)]));
    }
    return value;
  };

  const axis = { gridcolor: "@grid", linecolor: "@line", zerolinecolor: "@line", automargin: true, tickfont: { size: 11 } };

  const layoutOf = (figure) => {
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: "@muted-ink" },
      margin: { l: 55, r: 12, t: 10, b: 40 }, hovermode: "x unified", hoverlabel: { bgcolor: "@card", bordercolor: "@line" },
      ...figure.layout,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, ...figure.layout.legend },
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) layout[key] = { ...axis, ...layout[key] };
    }
    return layout;
  };

  const failed = (plot, error) => {
    root.dataset.errors = (root.dataset.errors || "") + plot.id + ": " + error + "\n";
    plot.textContent = "This plot could not be drawn: " + error;
  };

  const draw = () => {
    const css = getComputedStyle(root);
    for (const figure of figures) {
      const plot = document.getElementById("plot-" + figure.id);
      const config = { responsive: true, displaylogo: false, displayModeBar: false };
      Plotly.react(plot, themed(figure.data, css), themed(layoutOf(figure), css), config)
        .then(() => { plot.dataset.drawn = "yes"; }, (error) => failed(plot, error));
    }
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper is white.
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; draw(); });
  addEventListener("afterprint", () => { delete root.dataset.theme; draw(); });
})();
