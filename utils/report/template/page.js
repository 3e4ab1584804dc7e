"use strict";
// Boxes over the images, from the least score that the slider says.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const slider = document.getElementById("score");
  const truth = document.getElementById("truth");
  const gallery = document.getElementById("gallery");
  const LABEL_HEIGHT = 10; // percent of an image, at most: nearer to the top a label is inside of its box
  const CROWD = 6; // with more boxes than these their labels would hide the image
  const pairs = [...gallery.querySelectorAll(".pair")];

  for (const pair of pairs) {
    const [first, second] = pair.querySelectorAll(".pane");
    if (second) {
      const image = first.querySelector("img").cloneNode();
      image.alt = image.alt.replace(/before$/, "after");
      second.append(image);
    }
  }

  const counted = (count, kind) => `${count} ${gallery.matches(".single") ? "detected" : kind}`;
  const boxElement = (kind, [left, top, width, height, ...others]) => {
    const box = document.createElement("div");
    box.className = `box ${kind}`;
    box.classList.toggle("at-top", top < LABEL_HEIGHT);
    Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
    const label = document.createElement("span");
    const name = data.names[others.at(-1)];
    const words = data.names.length > 1 ? [name] : [];
    if (others.length > 1) words.push(others[0].toFixed(2));
    label.textContent = words.join(" ");
    if (words.length) box.append(label);
    return box;
  };

  const draw = () => {
    const least = Number(slider.value);
    const totals = {};
    pairs.forEach((pair, index) => {
      const counts = [];
      for (const pane of pair.querySelectorAll(".pane")) {
        const kind = pane.dataset.kind;
        const shown = data.images[index][kind].filter((box) => box[4] >= least);
        totals[kind] = (totals[kind] ?? 0) + shown.length;
        counts.push(counted(shown.length, kind));
        // The best box is on top.
        const boxes = shown.map((box) => boxElement(kind, box)).reverse();
        const real = data.images[index].truth.map((box) => boxElement("truth", box));
        pane.querySelectorAll(".box").forEach((box) => box.remove());
        pane.append(...real, ...boxes);
        pane.classList.toggle("crowded", boxes.length > CROWD);
      }
      pair.querySelector(".boxes").textContent = 
        `boxes: ${counts.join(", ")}, ${data.images[index].truth.length} in the ground truth`;
    });
    document.getElementById("score-value").textContent = least.toFixed(2);
    const words = Object.entries(totals).map(([kind, count]) => counted(count, kind));
    document.getElementById("count").textContent = `Boxes on these images: ${words.join(", ")}`;
  };

  const showTruth = () => gallery.classList.toggle("with-truth", truth.checked);
  slider.addEventListener("input", draw);
  truth.addEventListener("change", showTruth);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  draw();
  showTruth();
}

// The values of the plots, where the pointer is.
{
  const NEAR = 40; // pixels
  const tip = document.getElementById("tip");
  for (const title of document.querySelectorAll(".plot svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const middle = (mark) => {
    const place = mark.getBoundingClientRect();
    return [place.left + place.width / 2, place.top + place.height / 2];
  };
  const nearest = (svg, x, y) => {
    let [best, distance] = [null, NEAR];
    for (const mark of svg.querySelectorAll("use[data-tip]")) {
      const [markX, markY] = middle(mark);
      const away = Math.hypot(markX - x, markY - y);
      if (away < distance) [best, distance] = [mark, away];
    }
    return best;
  };
  const show = (event) => {
    const svg = event.target.closest(".plot svg");
    const row = svg && event.target.closest("g[data-tip]");
    const mark = row ?? (svg && nearest(svg, event.clientX, event.clientY));
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const [x, y] = row ? [event.clientX, event.clientY] : middle(mark);
    const width = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(8, Math.min(x + 12, width - tip.offsetWidth - 8)) + scrollX}px`;
    tip.style.top = `${Math.max(8, y - tip.offsetHeight - 12) + scrollY}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
}
