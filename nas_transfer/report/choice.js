// The slider of an opening: names the best net under a budget, and marks it in the charts.
for (const choice of document.querySelectorAll(".choice:has(.controls)")) {
  const nets = JSON.parse(choice.dataset.nets);
  const slider = choice.querySelector("input[type=range]"), chosen = choice.querySelector(".chosen");
  const budget = choice.querySelector(".budget"), views = [...choice.querySelectorAll(".axis-view")];
  let view = views[0];

  const words = value => {
    const number = value / Number(view.dataset.factor);
    return `${number >= 100 ? number.toFixed(0) : number.toPrecision(3)} ${view.dataset.unit}`;
  };

  const line = chart => {
    const [low, high, start, end] = chart.dataset.x.split(" ").map(Number);
    let mark = chart.querySelector(".budget-line");
    if (!mark) {
      mark = document.createElementNS(chart.namespaceURI, "line");
      mark.setAttribute("class", "budget-line");
      const axis = chart.querySelector(".axis").getBBox();
      mark.setAttribute("y1", axis.y);
      mark.setAttribute("y2", axis.y + axis.height);
      chart.append(mark);
    }
    const x = start + (Number(slider.value) - low) / (high - low) * (end - start);
    mark.setAttribute("x1", x);
    mark.setAttribute("x2", x);
  };

  const update = () => {
    const limit = Number(slider.value) * (1 + 1e-9), axis = view.dataset.axis;
    const under = nets.filter(net => axis in net.costs && net.costs[axis] <= limit);
    const best = under.reduce((a, b) => b.score > a.score || (b.score === a.score && b.costs[axis] < a.costs[axis]) ? b : a);
    budget.textContent = words(Number(slider.value));
    chosen.textContent = best.text;
    slider.setAttribute("aria-valuetext", `${budget.textContent}: ${best.name}`);
    for (const mark of choice.querySelectorAll("[data-key]")) mark.classList.toggle("chosen-mark", mark.dataset.key === best.key);
    for (const row of choice.querySelectorAll("tbody tr")) row.classList.toggle("chosen-row", row.rowIndex - 1 === Number(best.key));
    for (const chart of view.querySelectorAll("svg")) line(chart);
  };

  const show = name => {
    for (const one of views) one.hidden = one.dataset.axis !== name;
    view = views.find(one => one.dataset.axis === name);
    slider.min = view.dataset.low;
    slider.max = view.dataset.high;
    slider.value = view.dataset.start;
    update();
  };

  for (const radio of choice.querySelectorAll("input[type=radio]")) radio.addEventListener("change", () => show(radio.value));
  slider.addEventListener("input", update);
  choice.querySelector(".controls").hidden = false;
  show(views[0].dataset.axis);
}
