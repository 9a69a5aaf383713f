"use strict";
// Draws the page's charts from the data that stand in it, and moves thresholds.
(() => {
  const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
  const INK = "currentColor"; // follows the page into light and dark mode

  const CONFIG = {
    font: FONT,
    background: "transparent",
    padding: { left: 2, right: 8, top: 2, bottom: 2 },
    autosize: { type: "fit-x", contains: "padding" },
    view: { stroke: null },
    axis: {
      labelColor: INK, labelOpacity: 0.75, titleColor: INK, titleOpacity: 0.75, titleFontWeight: 400,
      domainColor: INK, domainOpacity: 0.4, tickColor: INK, tickOpacity: 0.4, gridColor: INK,
      gridOpacity: 0.12, labelFontSize: 11, titleFontSize: 11,
    },
    axisX: { grid: false, labelFlush: false },
    axisY: { domain: false, ticks: false, tickCount: 5 },
    axisBand: { grid: false },
    legend: {
      orient: "top", direction: "horizontal", labelColor: INK, labelFontSize: 11, symbolOpacity: 1,
      symbolType: "square", symbolStrokeWidth: 0, offset: 6, labelLimit: 160,
    },
  };

  const OPTIONS = {
    mode: "vega-lite",
    ast: true, // expressions are interpreted: the page forbids code made of text
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    config: CONFIG,
    tooltip: { disableDefaultStyle: true },
  };

  const whole = new Intl.NumberFormat("en");
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  /** Prints a share as Python does: of two decimals equally near, the even one. */
  function percent(share) {
    const points = 100 * share;
    return `${(points % 1 === 0.25 ? points - 0.05 : points).toFixed(1)}\u00a0%`;
  }

  /** Says what a threshold removes, in the words of charts/threshold.py. */
  function said(own, place) {
    const count = own.removed[place];
    const parts = [
      `A threshold of ${own.printed[place]} removes ${whole.format(count)} of ` +
        `${whole.format(own.total)} ${own.noun} (${percent(count / own.total)}).`,
    ];
    for (const { what, below, total } of own.tallies) {
      const share = count > 0 ? ` (${percent(below[place] / count)})` : "";
      const kept = whole.format(total - below[place]);
      parts.push(`${what}: ${whole.format(below[place])} of these${share}, ${kept} of those kept.`);
    }
    return parts.join(" ");
  }

  /** Returns the place of the threshold that is nearest to a score. */
  function nearest(at, score) {
    let low = 0;
    let high = at.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (at[middle] <= score) low = middle;
      else high = middle;
    }
    return score - at[low] <= at[high] - score ? low : high;
  }

  /** Lets the slider, and a drag in the chart, move a chart's threshold. */
  function movable(view, plot, controls) {
    const own = read(`thresholds-${controls.dataset.chart}`);
    const slider = controls.querySelector("input");
    const words = controls.querySelector(".said");
    const call = controls.querySelector(".call span");
    controls.querySelector(".slider").hidden = false;
    plot.classList.add("movable");

    const move = (place) => {
      const at = own.at[place];
      slider.value = place;
      slider.setAttribute("aria-valuetext", own.printed[place]);
      words.textContent = said(own, place);
      if (call) call.textContent = String(at);
      view.signal("threshold", at).runAsync();
      document.dispatchEvent(new CustomEvent("gradmimic:threshold", { detail: { threshold: at } }));
    };
    const follow = (event) => {
      const left = plot.querySelector("svg").getBoundingClientRect().left;
      const score = view.scale("x").invert(event.clientX - left - view.origin()[0]);
      move(nearest(own.at, score));
    };
    slider.addEventListener("input", () => move(Number(slider.value)));
    controls.querySelector("button").addEventListener("click", () => move(own.start));
    plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      plot.setPointerCapture(event.pointerId);
      follow(event);
    });
    plot.addEventListener("pointermove", (event) => {
      if (plot.hasPointerCapture(event.pointerId)) follow(event);
    });
    slider.setAttribute("aria-valuetext", own.printed[own.start]);
  }

  async function draw(plot) {
    // Into a part of it, whose own words Vega may replace: those of the whole stay.
    const spec = read(`spec-${plot.dataset.chart}`);
    const { view } = await vegaEmbed(plot.firstElementChild, spec, OPTIONS);
    const controls = plot.closest("figure").querySelector(".threshold");
    if (controls) movable(view, plot, controls);
    plot.dataset.drawn = "";
  }

  document.getElementById("unscripted").remove();
  for (const plot of document.querySelectorAll(".plot")) draw(plot);
})();
