"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("lanes");
  if (!canvas) return;
  const AXIS = 22, LANE = 26, GAP = 6, MARK = 5, NEAR = 3;
  // Further in, neighbouring times would be the same number: a clock that was set between two
  // calls makes a capture of years.
  const MIN_SPAN = Math.max(50, data.span / 2 ** 40);
  const MEMORY_HEIGHT = 110;
  const [START, END, NAME, KIND, COUNT, REFUSED, SAID] = [0, 1, 2, 3, 4, 5, 6];
  const BUSY = 1, UNANSWERED = 3;
  const context = canvas.getContext("2d");
  const detail = document.getElementById("detail");
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const memories = [...document.querySelectorAll("canvas.memory")];
  const hidden = new Set();
  const whole = { from: -data.span * 0.005, to: data.span * 1.005 };
  let view = { ...whole };
  let gutter = 120;
  let colors = {};

  // -- words ------------------------------------------------------------------------------

  const trimmed = (number, digits) => String(Number(number.toFixed(digits)));
  function duration(ns) {
    const size = Math.abs(ns);
    if (size < 1e3) return `${trimmed(ns, 0)} ns`;
    if (size < 1e6) return `${trimmed(ns / 1e3, 3)} µs`;
    if (size < 1e9) return `${trimmed(ns / 1e6, 3)} ms`;
    return `${trimmed(ns / 1e9, 3)} s`;
  }
  function bytes(size) {
    if (size < 1 << 20) return `${trimmed(size / 1024, 0)} KiB`;
    if (size < 2 ** 30) return `${trimmed(size / 2 ** 20, 1)} MiB`;
    return `${trimmed(size / 2 ** 30, 2)} GiB`;
  }
  function clock(ns) {
    const moment = new Date(data.start_ms + ns / 1e6);
    return Number.isNaN(moment.valueOf()) ? "" : ` (${moment.toISOString().slice(11, 23)} UTC)`;
  }
  const where = (lane) => `${lane.guest} ${lane.vcpu}`;
  function describe(lane, bar) {
    const time = `${where(lane)}, at ${duration(bar[START])}${clock(bar[START])}`;
    if (bar[COUNT] === 1) return `${time}\n${bar[SAID]}`;
    const parts = bar[SAID].map(([name, count]) => `${count} × ${data.names[name]}`);
    const refused = bar[REFUSED] ? `; ${bar[REFUSED]} refused or not answered` : "";
    return `${time}\n${bar[COUNT]} calls within ${duration(bar[END] - bar[START])}${refused}:\n` +
      parts.join("\n");
  }

  // -- geometry ---------------------------------------------------------------------------

  const width = () => canvas.clientWidth;
  const scale = () => (width() - gutter) / (view.to - view.from);
  const xOf = (ns) => gutter + (ns - view.from) * scale();
  const nsOf = (x) => view.from + (x - gutter) / scale();
  const yOf = (lane) => AXIS + lane * (LANE + GAP) + GAP;
  const family = (bar) => data.family_of[bar[NAME]];
  const isShown = (bar) => !hidden.has(data.families[family(bar)]);

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(`--${name}`).trim();
    colors = { families: [0, 1, 2, 3, 4, 5].map((number) => get(`f${number}`)) };
    for (const name of ["panel", "text", "faint", "line", "stripe", "bad", "busy", "unanswered",
      "secure", "shared", "out"]) colors[name] = get(name);
  }

  function prepare(target, height) {
    const ratio = window.devicePixelRatio || 1;
    target.style.height = `${height}px`;
    const size = [Math.round(target.clientWidth * ratio), Math.round(height * ratio)];
    if (target.width !== size[0] || target.height !== size[1]) [target.width, target.height] = size;
    const painter = target.getContext("2d");
    painter.setTransform(ratio, 0, 0, ratio, 0, 0);
    painter.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    painter.fillStyle = colors.panel;
    painter.fillRect(0, 0, target.clientWidth, height);
    return painter;
  }

  function ticks() {
    const wanted = (view.to - view.from) / Math.max(2, Math.floor((width() - gutter) / 110));
    const power = 10 ** Math.floor(Math.log10(wanted));
    const step = [1, 2, 5, 10].map((part) => part * power).find((one) => one >= wanted);
    const found = [];
    for (let ns = Math.ceil(view.from / step) * step; ns <= view.to; ns += step) found.push(ns);
    return found;
  }

  // -- drawing ----------------------------------------------------------------------------

  const layerOf = (bar) => (bar[KIND] === UNANSWERED && bar[COUNT] === 1 ? 0 : bar[KIND] < BUSY ? 1 : 2);
  function paintBar(bar, top, layer) {
    const isMarked = bar[KIND] >= BUSY;
    if (layerOf(bar) !== layer || !isShown(bar)) return;
    if (bar[END] < view.from || bar[START] > view.to) return;
    const left = Math.round(Math.max(gutter, xOf(bar[START])));
    const right = Math.round(Math.min(width(), xOf(bar[END])));
    const size = Math.max(isMarked ? 2 : 1, right - left);
    context.fillStyle = colors.families[family(bar)];
    if (layer === 0) {
      context.fillStyle = colors.unanswered;
      for (let x = left; x < left + size; x += 4) {
        context.fillRect(x, top, Math.min(2, left + size - x), LANE);
      }
    } else {
      context.fillRect(left, top, size, LANE);
    }
    if (bar[KIND] === BUSY) {
      context.fillStyle = colors.busy;
      context.fillRect(left, top, size, MARK);
    } else if (bar[REFUSED] && layer) {
      context.fillStyle = colors.bad;
      context.fillRect(left, top, size, bar[REFUSED] === bar[COUNT] ? LANE / 2 : MARK);
    }
  }

  function drawLanes() {
    const height = yOf(data.lanes.length);
    prepare(canvas, height);
    context.fillStyle = colors.text;
    context.textBaseline = "middle";
    gutter = Math.min(width() / 3, 20 + Math.max(60, ...data.lanes.map(
      (lane) => context.measureText(where(lane)).width)));
    context.textAlign = "center";
    for (const ns of ticks()) {
      // Between two pixels it would be a blur.
      const x = Math.round(xOf(ns));
      if (x < gutter) continue;
      const text = duration(ns);
      const half = context.measureText(text).width / 2;
      context.fillStyle = colors.line;
      context.fillRect(x, AXIS - 4, 1, height);
      context.fillStyle = colors.faint;
      context.fillText(text, Math.max(gutter + half, Math.min(width() - half - 4, x)), AXIS / 2);
    }
    data.lanes.forEach((lane, number) => {
      const top = yOf(number);
      context.fillStyle = colors.line;
      context.fillRect(gutter, top + LANE, width() - gutter, 1);
      for (const layer of [0, 1, 2]) for (const bar of lane.bars) paintBar(bar, top, layer);
    });
    context.fillStyle = colors.faint;
    for (const [ns] of data.marks) {
      if (ns < view.from || ns > view.to) continue;
      const x = xOf(ns);
      context.beginPath();
      context.moveTo(x - 4, AXIS - 6);
      context.lineTo(x + 4, AXIS - 6);
      context.lineTo(x, AXIS + 1);
      context.fill();
    }
    // The names last, above whatever reaches into the gutter.
    context.fillStyle = colors.panel;
    context.fillRect(0, 0, gutter - 1, height);
    context.fillStyle = colors.text;
    context.textAlign = "left";
    data.lanes.forEach((lane, number) => {
      context.fillText(where(lane), 8, yOf(number) + LANE / 2, gutter - 12);
    });
    // Tests and scripts find the bars by these.
    Object.assign(canvas.dataset, {
      from: view.from, to: view.to, gutter, axis: AXIS, lane: LANE, gap: GAP,
    });
  }

  function drawMemory(target) {
    const { points } = data.memory[Number(target.dataset.memory)];
    const painter = prepare(target, MEMORY_HEIGHT);
    const most = Math.max(1, ...points.map((one) => one[1] + one[2] + one[3]));
    const base = MEMORY_HEIGHT - 6, room = MEMORY_HEIGHT - 24;
    points.forEach(([ns, secure, shared, out], number) => {
      const end = number + 1 < points.length ? points[number + 1][0] : data.span;
      if (end < view.from || ns > view.to) return;
      const left = Math.max(gutter, Math.floor(xOf(ns)));
      const right = Math.min(width(), Math.ceil(xOf(end)));
      let bottom = base;
      for (const [size, color] of [[secure, colors.secure], [shared, colors.shared],
        [out, colors.out]]) {
        // The least that is there is seen.
        const height = size ? Math.max(1, Math.round(room * size / most)) : 0;
        painter.fillStyle = color;
        painter.fillRect(left, bottom - height, Math.max(1, right - left), height);
        bottom -= height;
      }
    });
    painter.fillStyle = colors.line;
    painter.fillRect(gutter, base, width() - gutter, 1);
    painter.fillStyle = colors.faint;
    painter.textAlign = "right";
    painter.textBaseline = "middle";
    painter.fillText(bytes(most), gutter - 8, base - room);
    painter.fillText("0", gutter - 8, base);
    Object.assign(target.dataset, { base, room, most });
  }

  let isAsked = false;
  function draw() {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      drawLanes();
      memories.forEach(drawMemory);
      document.documentElement.dataset.drawn = String(
        Number(document.documentElement.dataset.drawn || 0) + 1);
    });
  }

  // -- moving -----------------------------------------------------------------------------

  function show(from, to) {
    const most = whole.to - whole.from;
    const size = Math.min(most, Math.max(MIN_SPAN, to - from));
    const middle = (from + to) / 2;
    const low = Math.min(Math.max(whole.from, middle - size / 2), whole.to - size);
    view = { from: low, to: low + size };
    tip.hidden = true;
    draw();
  }
  function zoom(factor, around = (view.from + view.to) / 2) {
    show(around - (around - view.from) * factor, around + (view.to - around) * factor);
  }
  function move(part) {
    const way = (view.to - view.from) * part;
    show(view.from + way, view.to + way);
  }
  const orders = {
    in: () => zoom(0.5),
    out: () => zoom(2),
    left: () => move(-0.25),
    right: () => move(0.25),
    all: () => show(whole.from, whole.to),
  };
  const keys = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right",
    0: "all", Home: "all" };
  for (const button of document.querySelectorAll("button[data-do]")) {
    button.addEventListener("click", orders[button.dataset.do]);
  }
  canvas.addEventListener("keydown", (event) => {
    const order = keys[event.key];
    if (!order || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    orders[order]();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      move((event.deltaX || event.deltaY) / 1000);
    } else {
      zoom(1.0015 ** event.deltaY, nsOf(Math.max(gutter, event.offsetX)));
    }
  }, { passive: false });
  for (const box of document.querySelectorAll("input[data-family]")) {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.dataset.family);
      else hidden.add(box.dataset.family);
      draw();
    });
  }

  // -- pointing ---------------------------------------------------------------------------

  function barAt(x, y) {
    const number = Math.floor((y - AXIS - GAP / 2) / (LANE + GAP));
    const lane = data.lanes[number];
    if (!lane || x < gutter) return null;
    let best = null, nearest = NEAR + 1, shortest = Infinity;
    for (const bar of lane.bars) {
      if (!isShown(bar)) continue;
      const left = xOf(bar[START]);
      const right = Math.max(left + 1, xOf(bar[END]));
      const away = x < left ? left - x : Math.max(0, x - right);
      const size = right - left;
      if (away < nearest || (away === nearest && size < shortest)) {
        [best, nearest, shortest] = [bar, away, size];
      }
    }
    return best && describe(lane, best);
  }
  function markAt(x, y) {
    if (y > AXIS + 2) return null;
    const near = data.marks.filter(([ns]) => Math.abs(xOf(ns) - x) <= 5);
    return near.length ? near.slice(0, 8).map(
      ([ns, guest, text]) => `${duration(ns)}: ${guest}: ${text}`).join("\n") : null;
  }
  function point(event, text) {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    const below = event.clientY + 18;
    tip.style.top = `${below + box.height > innerHeight ? Math.max(4, event.clientY - box.height - 12) : below}px`;
  }
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, view: { ...view }, hasMoved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      point(event, barAt(event.offsetX, event.offsetY) || markAt(event.offsetX, event.offsetY));
      return;
    }
    const way = drag.x - event.clientX;
    drag.hasMoved ||= Math.abs(way) > 3;
    if (!drag.hasMoved) return;
    canvas.classList.add("dragged");
    show(drag.view.from + way / scale(), drag.view.to + way / scale());
  });
  const drop = (event) => {
    if (drag && !drag.hasMoved && event.type === "pointerup") {
      keep(barAt(event.offsetX, event.offsetY) || markAt(event.offsetX, event.offsetY));
    }
    drag = null;
    canvas.classList.remove("dragged");
  };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", drop);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  function keep(text) {
    detail.hidden = !text;
    detail.textContent = text || "";
  }
  for (const target of memories) {
    target.addEventListener("pointermove", (event) => {
      const ns = nsOf(event.offsetX);
      const { guest, points } = data.memory[Number(target.dataset.memory)];
      const found = points.findLast((one) => one[0] <= ns);
      point(event, found && event.offsetX >= gutter &&
        `${guest}, at ${duration(ns)}: ${bytes(found[1])} secure, ${bytes(found[2])} shared, ` +
        `${bytes(found[3])} paged out`);
    });
    target.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
  for (const row of document.querySelectorAll("#refusals tr[data-at]")) {
    const find = () => {
      const at = Number(row.dataset.at);
      const size = Math.min(view.to - view.from, data.span / 50);
      show(at - size / 2, at + size / 2);
      for (const lane of data.lanes) {
        for (const bar of lane.bars) {
          if (bar[REFUSED] && bar[START] <= at && at <= bar[END]) keep(describe(lane, bar));
        }
      }
      canvas.scrollIntoView({ block: "center" });
    };
    row.addEventListener("click", find);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  }

  const look = () => { readColors(); draw(); };
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
  look();
})();
