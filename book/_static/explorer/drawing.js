// The explorer's drawings, as SVG text. The visual language is that of densenet_tutorial/figures/LANGUAGE.md: a colour and
// a hatch for each source of features, the input first and the newest last. Colours come from explorer.css.
"use strict";

(function (explorer) {
  const { grouped, sources } = explorer;
  const SOURCES = 8;

  const hue = (source) => `source-${source % SOURCES}`;
  const round = (number) => Math.round(number * 100) / 100;
  const text = (x, y, content, { anchor = "start", kind = "" } = {}) =>
    `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" class="${kind}">${content}</text>`;
  const rect = (x, y, width, height, kind, extra = "") =>
    `<rect x="${round(x)}" y="${round(y)}" width="${round(Math.max(width, 0.3))}" height="${round(Math.max(height, 0.3))}" class="${kind}" ${extra}/>`;
  const path = (d, kind) => `<path d="${d}" class="${kind}"/>`;
  const svg = (width, height, content) =>
    `<svg viewBox="0 0 ${round(width)} ${round(height)}" width="${round(width)}" height="${round(height)}" aria-hidden="true" focusable="false">${content}</svg>`;

  // A hatch for each source but the input, in the order of style.py's HATCHES; all drawings of a page share them.
  const HATCHES = `<svg width="0" height="0" style="position: absolute" aria-hidden="true" focusable="false"><defs>${[
    [8, '<path d="M-2 10 10-2M-2 2 2-2M6 10l4-4"/>'],
    [6, '<circle cx="1.5" cy="1.5" r="1"/><circle cx="4.5" cy="4.5" r="1"/>'],
    [8, '<path d="M0 0l8 8M8 0 0 8"/>'],
    [8, '<path d="M-2-2l12 12M-2 6l4 4M6-2l4 4"/>'],
    [8, '<path d="M4 0v8M0 4h8"/>'],
    [8, '<circle cx="4" cy="4" r="2.2"/>'],
    [6, '<path d="M0 3h6"/>'],
  ].map(([side, lines], index) =>
    `<pattern id="hatch-${index + 1}" width="${side}" height="${side}" patternUnits="userSpaceOnUse"><g class="hatch hatch-${index + 1}">${lines}</g></pattern>`,
  ).join("")}</defs></svg>`;
  function addHatches() {
    if (!document.querySelector("#hatch-1")) document.body.insertAdjacentHTML("beforeend", HATCHES);
  }
  const hatched = (x, y, width, height, source, kind = "") =>
    rect(x, y, width, height, `${hue(source)} ${kind}`)
    + (source % SOURCES ? rect(x, y, width, height, "hatching", `fill="url(#hatch-${source % SOURCES})"`) : "");

  /** The colour of a sum of the first `count` sources. After a round of colours it does not change any more. */
  function mixed(count) {
    let mix = "var(--source-0)";
    for (let source = 1; source < Math.min(count, SOURCES); source++) {
      mix = `color-mix(in srgb, var(--source-${source}) ${round(100 / (source + 1))}%, ${mix})`;
    }
    return mix;
  }

  /** Where everything is: depth runs to the right, on narrow pages down; channels run the other way. */
  function layout(network, width, wiring, compact) {
    const across = width >= 560 || compact;
    const { blocks, parts, config } = network;
    const most = Math.max(parts[0].shape[0], ...blocks.map((block) => block.output));
    const columns = blocks.reduce((sum, block) => sum + block.numLayers + 1, 0);
    const room = compact ? 34 : across ? 62 : 52;  // for the arcs
    const breadth = Math.min(across ? (compact ? 150 : Math.min(Math.max(0.36 * width, 240), 380)) : width - room - 12, most * (compact ? 7 : 14));
    const fixed = { stem: compact ? 20 : 34, transition: across ? (compact ? 18 : 26) : 46, head: compact ? 36 : 62 };
    const margin = across ? (compact ? 4 : 72) : 8;
    const free = across
      ? width - margin - fixed.stem - fixed.head - (blocks.length - 1) * fixed.transition - 12
      : Math.max(460, columns * 6);
    const unit = Math.min(free / columns, across ? 150 : 40);
    const scale = breadth / most;
    let depth = (across ? margin : 30) + fixed.stem;
    const placed = blocks.map((block) => {
      const start = depth;
      depth += (block.numLayers + 1) * unit + fixed.transition;
      return { block, start, end: start + (block.numLayers + 1) * unit };
    });
    return { across, most, unit, scale, breadth, room, fixed, margin, placed, width, wiring, compact, end: depth - fixed.transition, stem: config.stem };
  }

  /** The drawing of a whole network, and which layer is at a point of it. */
  function drawNetwork(network, { width, wiring, focus, compact = false }) {
    const at = layout(network, width, wiring, compact);
    const { across, unit, scale, room, placed } = at;
    // From depth and channels to x and y.
    const box = (depth, channel, length, channels) => {
      const start = room + channel * scale, extent = channels * scale;
      return across ? [depth, start, length, extent] : [start, depth, extent, length];
    };
    const point = (depth, offset) => (across ? `${round(depth)} ${round(offset)}` : `${round(offset)} ${round(depth)}`);
    const trapezoid = (depth, length, before, after, kind) =>
      path(`M${point(depth, room)}L${point(depth + length, room)}L${point(depth + length, room + after * scale)}L${point(depth, room + before * scale)}Z`, kind);

    const base = [], labels = [], over = [];
    const first = placed[0];
    const [stem] = network.parts[0].shape;
    base.push(rect(...box(first.start - at.fixed.stem + (compact ? 2 : 10), 0, at.fixed.stem - (compact ? 5 : 14), stem), "part", 'rx="3"'));

    for (const { block, start, end } of placed) {
      const dense = wiring === "dense";
      for (let source = 0; source <= block.numLayers; source++) {
        const from = source === 0 ? 0 : block.input + (source - 1) * block.growthRate;
        const channels = source === 0 ? block.input : block.growthRate;
        const born = start + source * unit;
        if (dense) base.push(rect(...box(born, from, end - born, channels), `band ${hue(source)}`));
        else if (wiring === "plain") base.push(rect(...box(born, 0, unit, block.output), `band ${hue(source)}`));
        else base.push(rect(...box(born, 0, unit, block.output), "band", `style="--source: ${mixed(source + 1)}"`));
        if (wiring === "residual" && source && unit >= 12) base.push(plus(...middle(box(born, 0, 0, block.output)), Math.min(7, unit / 3)));
      }
      if (block.kept !== undefined) {
        const gap = across ? 4 : 3;
        base.push(trapezoid(end + gap, (across ? at.fixed.transition : 22) - 2 * gap, block.output, block.kept, "part"));
      }
    }
    const last = placed[placed.length - 1].block;
    base.push(rect(...box(at.end + 6, 0, 4, last.output), "part"));

    over.push(drawFocus(at, box, point, focus));

    if (!compact) {
      if (across) labelAcross(network, at, labels);
      else labelDown(network, at, labels);
    }
    const deep = at.end + at.fixed.head;
    const [w, h] = across
      ? [width, room + at.breadth + (compact ? 8 : 100)]
      : [width, deep - 14];
    return {
      markup: svg(w, h, `<g class="base">${base.join("")}</g>${labels.join("")}<g class="lit">${over.join("")}</g>`),
      layerAt(x, y) {
        const depth = across ? x : y;
        const near = placed.find(({ end }) => depth <= end + at.fixed.transition / 2) ?? placed[placed.length - 1];
        const layer = Math.min(Math.max(Math.floor((depth - near.start) / unit), 1), near.block.numLayers);
        return { block: near.block.number, layer };
      },
    };
  }

  const middle = ([x, y, width, height]) => [x + width / 2, y + height / 2];
  const plus = (x, y, r) =>
    `<g class="plus"><circle cx="${round(x)}" cy="${round(y)}" r="${round(r)}"/>${path(`M${round(x - r)} ${round(y)}h${round(2 * r)}M${round(x)} ${round(y - r)}v${round(2 * r)}`, "")}</g>`;

  /** What the layer in focus reads, what it makes, and the connections to it. */
  function drawFocus(at, box, point, focus) {
    const { unit, scale, room, wiring, across, compact } = at;
    const { block, start, end } = at.placed[focus.block - 1];
    const layer = focus.layer, lit = [];
    const made = start + layer * unit;
    const shown = Math.max(unit, 9), reading = made - shown;  // in deep networks a column would be too narrow to see
    const arc = (source, kind = hue(source), share = 1) => {
      const from = start + (source + 0.5) * unit, to = made + unit / 2;
      const height = Math.min(room - (compact ? 4 : 20), 6 + (to - from) * 0.42) * share;
      const peak = room - height * 1.33;
      const line = path(`M${point(from, room - 1)}C${point(from, peak)} ${point(to, peak)} ${point(to, room - 1)}`, `arc ${kind}`);
      return line.replace("/>", ` stroke-width="${round(Math.min(Math.max(unit / 6, 0.9), 1.8))}"/>`);
    };
    if (wiring === "dense") {
      sources(block, layer).forEach((channels, source) => {
        const from = source === 0 ? 0 : block.input + (source - 1) * block.growthRate;
        const born = start + source * unit;
        lit.push(rect(...box(born, from, Math.max(reading - born, 0), channels), `${hue(source)} trail`));
        lit.push(hatched(...box(reading, from, shown, channels), source, "read"));
        lit.push(arc(source));
      });
      const { reads } = block.layers[layer - 1];
      lit.push(rect(...box(made, reads, end - made, block.growthRate), `${hue(layer)} trail`));
      lit.push(hatched(...box(made, reads, shown, block.growthRate), layer, "read"));
      lit.push(rect(...box(made, reads, shown, block.growthRate), `${hue(layer)} made`, 'rx="3"'));
      lit.push(rect(...box(reading - 1, -1 / scale, shown + 2, reads + 2 / scale), "frame", 'rx="3"'));
    } else {
      const whole = (depth) => box(depth, 0, shown, block.output);
      if (wiring === "plain") {
        lit.push(hatched(...whole(reading), layer - 1, "read"), arc(layer - 1));
        lit.push(hatched(...whole(made), layer, "read"));
      } else {
        lit.push(rect(...whole(reading), "read", `style="--source: ${mixed(layer)}"`));
        lit.push(rect(...whole(made), "read", `style="--source: ${mixed(layer + 1)}"`));
        lit.push(arc(layer - 1, hue(layer), 0.55), arc(layer - 1, "skip"));  // through the layer, and around it
        lit.push(plus(...middle(box(made, 0, 0, block.output)), Math.min(8, Math.max(unit / 2.5, 3))));
      }
      lit.push(rect(...whole(made), `${hue(layer)} made`, 'rx="3"'), rect(...whole(reading), "frame", 'rx="3"'));
    }
    // Its name, where nothing else is: left of what it adds, or above the arcs.
    if (across) {
      const [x, y, , height] = box(made, wiring === "dense" ? block.layers[layer - 1].reads : 0, unit, block.growthRate);
      lit.push(wiring === "dense"
        ? text(x - 8, y + height / 2 + 4, `layer ${layer}`, { anchor: "end", kind: "name" })
        : text(x, 12, `layer ${layer}`, { anchor: "middle", kind: "name" }));
    }
    return lit.join("");
  }

  /** Under each block its size and its channels; on the left a scale. */
  function labelAcross(network, at, labels) {
    const { room, breadth, scale, placed, margin } = at;
    const under = room + breadth;
    const pixels = 30 / network.config.inputSize;
    const square = (x, size) => rect(x, under + 58, Math.max(size * pixels, 1.5), Math.max(size * pixels, 1.5), "pixels");
    // A scale: the largest of 1, 2, 5, 10, … channels that takes at most a third of the drawing.
    const nice = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000].filter((n) => n <= at.most / 3).pop() ?? 1;
    labels.push(path(`M14 ${room}h-6v${round(nice * scale)}h6`, "scale"));
    labels.push(text(17, room + 11, grouped(nice), { kind: "soft" }), text(17, room + 24, "ch.", { kind: "soft" }));
    labels.push(text(2, under + 20, "image", { kind: "soft" }), text(2, under + 36, `${network.config.inputSize} × ${network.config.inputSize}`, { kind: "soft" }), square(2, network.config.inputSize));
    let free = margin;
    for (const { block, start, end } of placed) {
      const wide = end - start, x = Math.max(start, free);
      labels.push(path(`M${round(start)} ${under + 5}H${round(end)}`, "scale"));
      const lines = [`block ${block.number}`, `${block.size} × ${block.size}`, `${grouped(block.input)} → ${grouped(block.output)}`];
      if (wide < 78) lines.pop();
      if (wide < 46) lines[0] = `${block.number}`;
      lines.forEach((line, index) => labels.push(text(x, under + 20 + 16 * index, line, { kind: index ? "soft" : "strong" })));
      labels.push(square(x, block.size));
      free = x + 30;
    }
    const features = placed[placed.length - 1].block.output;
    labels.push(text(at.end + 14, under + 20, "mean,", { kind: "soft" }), text(at.end + 14, under + 36, "classes", { kind: "soft" }));
    labels.push(text(at.end + 14, room + 12, grouped(features), { kind: "soft" }), text(at.end + 14, room + 28, `→ ${grouped(network.config.numClasses)}`, { kind: "soft" }));
  }

  function labelDown(network, at, labels) {
    const { room, placed } = at;
    for (const { block, start } of placed) {
      const y = start - 8;
      labels.push(text(room + (block.number === 1 ? 60 : 0), block.number === 1 ? 26 : y, `<tspan class="strong">block ${block.number}</tspan> · ${block.size} × ${block.size} · ${grouped(block.input)} → ${grouped(block.output)} ch.`, { kind: "soft" }));
    }
    labels.push(text(room, at.end + 30, `${grouped(placed[placed.length - 1].block.output)} means → ${grouped(network.config.numClasses)} classes`, { kind: "soft" }));
  }

  /** One layer: the strip that it reads, by source, and what it does with it. */
  function drawLayer(block, number, wiring, width) {
    const layer = block.layers[number - 1];
    const dense = wiring === "dense";
    const wide = block.output;
    const reads = dense ? layer.reads : wide, adds = dense ? layer.adds : wide;
    const gap = 22, height = 40, top = 6;
    const scale = (width - gap - 2) / (reads + adds);
    const content = [];
    let x = 1, labelled = -Infinity;
    if (dense) {
      sources(block, number).forEach((channels, source) => {
        const extent = channels * scale;
        content.push(hatched(x, top, extent, height, source, "cell"));
        const label = source === 0 ? "input" : `${source}`;
        const needs = Math.max(label.length, String(channels).length) * 7 + 6;
        if (x + extent / 2 - needs / 2 >= labelled) {
          const center = Math.max(x + extent / 2, needs / 2);
          content.push(text(center, top + height + 16, label, { anchor: "middle", kind: "soft" }));
          content.push(text(center, top + height + 31, grouped(channels), { anchor: "middle" }));
          labelled = center + needs / 2;
        }
        x += extent;
      });
    } else {
      content.push(wiring === "plain"
        ? hatched(x, top, reads * scale, height, number - 1, "cell")
        : rect(x, top, reads * scale, height, "cell", `style="--source: ${mixed(number)}"`));
      const from = number === 1 ? "input" : wiring === "plain" ? `layer ${number - 1}` : "sum so far";
      content.push(text(x + (reads * scale) / 2, top + height + 16, from, { anchor: "middle", kind: "soft" }));
      content.push(text(x + (reads * scale) / 2, top + height + 31, grouped(reads), { anchor: "middle" }));
      x += reads * scale;
    }
    const sign = wiring === "residual" ? plus(x + gap / 2, top + height / 2, 8) : path(`M${round(x + 5)} ${top + height / 2}h11m-4-4 4 4-4 4`, "arrow");
    content.push(sign);
    x += gap;
    content.push(hatched(x, top, adds * scale, height, number, "cell"), rect(x, top, adds * scale, height, `${hue(number)} made`, 'rx="3"'));
    const end = Math.min(x + (adds * scale) / 2, width - 24);
    content.push(text(end, top + height + 16, "new", { anchor: "middle", kind: "soft" }), text(end, top + height + 31, grouped(adds), { anchor: "middle", kind: "strong" }));
    return svg(width, top + height + 40, content.join(""));
  }

  /** The operations of one layer, in order, with the channels between them and their weights. */
  function drawPipeline(block, number, wiring, width) {
    const layer = block.layers[number - 1];
    const steps = [];
    if (wiring !== "dense") {
      steps.push({ kind: "3x3", weights: 9 * block.output ** 2, gives: block.output });
    } else {
      steps.push({ kind: "norm", weights: 2 * layer.reads, gives: layer.reads });
      if (layer.width !== null) {
        steps.push({ kind: "1x1", weights: layer.first, gives: layer.width });
        steps.push({ kind: "norm", weights: 2 * layer.width, gives: layer.width });
      }
      steps.push({ kind: "3x3", weights: layer.second, gives: layer.adds });
    }
    const narrow = width < 560;
    const arrow = narrow ? 27 : 58, pad = narrow ? 3 : 14, half = narrow ? 19 : 23;
    const boxWidth = Math.min((Math.min(width, 860) - arrow * (steps.length + 1) - 2 * pad) / steps.length, 120);
    const inner = arrow * (steps.length + 1) + boxWidth * steps.length + 2 * pad;
    const top = 26, height = 58;
    let x = (width - inner) / 2;
    const content = [rect(x + arrow, 8, inner - 2 * arrow, height + 52, `${hue(number)} layer`, 'rx="10"')];
    const arrowTo = (channels, kind = "") => {
      content.push(path(`M${round(x + 3)} ${top + height / 2}h${arrow - 7}m-4-4 4 4-4 4`, "arrow"));
      content.push(text(x + arrow / 2, top + height / 2 - 8, grouped(channels), { anchor: "middle", kind }));
      x += arrow;
    };
    arrowTo(wiring === "dense" ? layer.reads : block.output);
    x += pad;
    steps.forEach(({ kind, weights, gives }, index) => {
      const c = x + boxWidth / 2;
      if (kind === "norm") {
        content.push(rect(c - half, top, 2 * half, height, "step", 'rx="4"'), text(c, top + 26, "norm,", { anchor: "middle" }), text(c, top + 41, "ReLU", { anchor: "middle" }));
      } else if (kind === "1x1") {
        const l = x + 2, r = x + boxWidth - 2, waist = 11;
        content.push(path(`M${round(l)} ${top}C${round(c)} ${top + waist} ${round(c)} ${top + waist} ${round(r)} ${top}V${top + height}C${round(c)} ${top + height - waist} ${round(c)} ${top + height - waist} ${round(l)} ${top + height}Z`, "step"));
        content.push(text(c, top + height / 2 + 4, "1 × 1", { anchor: "middle", kind: "strong" }));
      } else {
        const side = 34, l = c - side / 2, t = top + 2;
        content.push(rect(l, t, side, side, "step"), path(`M${round(l + side / 3)} ${t}v${side}m${round(side / 3)} 0v-${side}M${round(l)} ${round(t + side / 3)}h${side}m0 ${round(side / 3)}h-${side}`, "step"));
        content.push(text(c, top + height - 6, "3 × 3", { anchor: "middle", kind: "strong" }));
      }
      content.push(text(c, top + height + 20, grouped(weights), { anchor: "middle" }));
      x += boxWidth + (index === steps.length - 1 ? pad : 0);
      arrowTo(gives, index === steps.length - 1 ? "strong" : "");
    });
    return svg(width, top + height + 40, content.join(""));
  }

  /** Weights of the convolutions of each layer of a block, with a bottleneck and without. */
  function drawCrossing(block, bnSize, width) {
    const { layerWeights, crossing } = explorer;
    const k = block.growthRate;
    const wide = Math.min(width, 620), left = 8, right = 118, top = 14, bottom = 34, height = 210;
    const counts = block.layers.map(({ reads }) => [layerWeights(reads, k, bnSize).weights, layerWeights(reads, k, null).weights]);
    const most = Math.max(...counts.flat());
    const x = (number) => left + 8 + ((wide - left - right - 16) * (number - 1)) / Math.max(block.numLayers - 1, 1);
    const y = (weights) => height - bottom - ((height - top - bottom) * weights) / most;
    const line = (which) => counts.map((pair, index) => `${index ? "L" : "M"}${round(x(index + 1))} ${round(y(pair[which]))}`).join("");
    const every = Math.ceil(block.numLayers / 24);
    const dots = (which, kind) => counts.map((pair, index) =>
      index % every && index !== counts.length - 1 ? "" : `<circle cx="${round(x(index + 1))}" cy="${round(y(pair[which]))}" r="3.4" class="${kind}"/>`).join("");
    const content = [
      path(`M${left} ${height - bottom}H${wide - right}`, "scale"),
      path(line(0), "source-0 curve"), dots(0, "source-0 filled"),
      path(line(1), "source-1 curve"), dots(1, "source-1 open"),
      text(x(1), height - 10, "layer 1", { kind: "soft" }),
      text(x(block.numLayers), height - 10, `${block.numLayers}`, { anchor: "middle", kind: "soft" }),
    ];
    const meet = crossing(k, bnSize);
    const where = meet === null ? null : (meet - block.input) / k + 1;
    if (where !== null && where >= 1 && where <= block.numLayers) {
      content.push(path(`M${round(x(where))} ${top}V${height - bottom}`, "meet"));
    }
    // The name of each curve at its end, the upper one first, and the lower one out of its way.
    const ends = counts[counts.length - 1].map((weights, which) => ({ weights, label: ["with bottleneck", "without"][which] }));
    let free = 14;
    for (const { weights, label } of ends.sort((a, b) => b.weights - a.weights)) {
      const place = Math.max(y(weights) + 3, free);
      content.push(text(wide - right + 12, place, label, { kind: "strong" }), text(wide - right + 12, place + 15, grouped(weights), { kind: "soft" }));
      free = place + 36;
    }
    return svg(width, height, content.join(""));
  }

  Object.assign(explorer, { addHatches, drawNetwork, drawLayer, drawPipeline, drawCrossing });
})((globalThis.DenseNetExplorer ??= {}));
