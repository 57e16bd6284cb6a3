// The control panel: the heat map of feature reuse, whose cells cut connections, and the count of right answers.
(function (live) {
  "use strict";
  const net = live.network;
  const DRAWS = 5;

  const sourceName = from => (from === 0 ? "the input" : `layer ${from}`);
  const readerName = (network, number, to) => {
    const block = network.blocks[number - 1];
    return to <= block.layers.length ? `layer ${to}` : block.last ? "the classifier" : "the transition";
  };

  /** A button for each connection, in a list for each reader: Map from "block:to" to an element. */
  function createCells(network, toggle) {
    const columns = new Map();
    for (const [number, from, to] of net.connections(network)) {
      const name = `${number}:${to}`, block = network.blocks[number - 1];
      if (!columns.has(name)) {
        const column = document.createElement("div");
        column.className = "live-cells";
        columns.set(name, column);
      }
      const weights = Array.from({ length: to }, (_, source) => net.reuse(network, block, source, to));
      const weight = weights[from], share = weight / Math.max(...weights);
      const cell = document.createElement("button");
      cell.type = "button";
      cell.className = `live-cell live-source-${from % 8}`;
      Object.assign(cell.dataset, { block: number, from, to });
      cell.dataset.weight = weight;
      cell.style.setProperty("--share", share.toFixed(3));
      cell.setAttribute("aria-pressed", "false");
      const words = `Cut block ${number}, ${sourceName(from)} to ${readerName(network, number, to)}`;
      const sign = from === 0 ? "in" : from;
      cell.innerHTML = `<span aria-hidden="true">${sign}</span><span class="live-hidden">${sign}: ${words}, mean weight ${
        weight.toFixed(4)}</span>`;
      cell.title = `${words} (mean weight ${weight.toFixed(4)})`;
      cell.tabIndex = -1;
      cell.addEventListener("click", () => toggle(net.key(number, from, to)));
      columns.get(name).append(cell);
    }
    return columns;
  }

  /** Arrow keys move between the cells; one of them is a stop of the Tab key. */
  function roveCells(root) {
    const cells = [...root.querySelectorAll(".live-cell")];
    const at = cell => [Number(cell.dataset.block), Number(cell.dataset.from), Number(cell.dataset.to)];
    const find = (block, from, to) => cells.find(cell => String(at(cell)) === String([block, from, to]));
    cells[0].tabIndex = 0;
    const visit = cell => {
      for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
    };
    root.addEventListener("focusin", event => {
      if (cells.includes(event.target)) visit(event.target);
    });
    root.addEventListener("keydown", event => {
      if (!cells.includes(event.target)) return;
      const [block, from, to] = at(event.target), index = cells.indexOf(event.target);
      const first = cells.filter(cell => cell.dataset.from === String(from));
      const next = {
        ArrowUp: () => find(block, from - 1, to),
        ArrowDown: () => find(block, from + 1, to),
        ArrowLeft: () => first[first.indexOf(event.target) - 1],
        ArrowRight: () => first[first.indexOf(event.target) + 1],
        Home: () => cells[0],
        End: () => cells.at(-1),
        PageDown: () => cells[Math.min(cells.length - 1, index + 10)],
        PageUp: () => cells[Math.max(0, index - 10)],
      }[event.key];
      if (!next) return;
      event.preventDefault();
      next()?.focus();
    });
  }

  function markCells(root, cuts) {
    for (const cell of root.querySelectorAll(".live-cell")) {
      const { block, from, to } = cell.dataset;
      cell.setAttribute("aria-pressed", String(cuts.has(net.key(block, from, to))));
    }
  }

  /** What the Worker does: counts right answers, a few pictures at a time, so that a new question can interrupt. */
  function work() {
    const net = globalThis.DenseNetLive.network;
    let network, pictures, labels, side, current;
    const inputs = []; // of the later blocks, uncut, for each picture
    const pause = () => new Promise(done => setTimeout(done));

    function answer(index, cuts) {
      const first = net.firstCutBlock(network, cuts);
      if (first === 1) return net.largest(net.run(network, pictures[index], side, cuts).logits);
      inputs[index] ??= net.run(network, pictures[index], side).blocks.map(block => block.output);
      const before = inputs[index][first - 2];
      return net.largest(first > network.blocks.length ? before : net.finish(network, before, side, cuts, first));
    }

    globalThis.onmessage = async ({ data }) => {
      if (data.weights) {
        network = net.build(data.weights);
        ({ pictures, labels, side } = data);
        return;
      }
      current = data.id;
      for (const [job, names] of data.jobs.entries()) {
        const cuts = new Set(names);
        let right = 0;
        for (let i = 0; i < pictures.length; i++) {
          right += answer(i, cuts) === labels[i];
          if (i % 5 !== 4) continue;
          await pause();
          if (current !== data.id) return;
          globalThis.postMessage({ id: data.id, job, done: i + 1, right });
        }
      }
    };
  }

  /** Counts of right answers: `ask(cuts)` answers by `report({ right, done, draws, images })`, again and again. */
  function createCounter(weights, pictures, labels, side, network, report) {
    const text = `globalThis.DenseNetLive = {}; ${net.source}(globalThis.DenseNetLive); (${work})();`;
    const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    worker.postMessage({ weights, pictures, labels, side });
    let state = null, id = 0, waiting = 0;
    worker.onmessage = ({ data }) => {
      if (data.id !== id) return;
      const finished = data.done === labels.length;
      if (data.job === 0) Object.assign(state, { right: data.right, done: data.done });
      else Object.assign(state, { drawing: data.done });
      if (data.job > 0 && finished) Object.assign(state, { draws: [...state.draws, data.right], drawing: 0 });
      report(state);
    };
    return {
      ask(cuts) {
        id += 1;
        const seeds = cuts.size ? Array.from({ length: DRAWS }, (_, i) => i + 1) : [];
        const jobs = [[...cuts], ...seeds.map(seed => [...net.randomCuts(network, cuts, seed)])];
        state = { cuts: cuts.size, right: 0, done: 0, images: labels.length, wanted: seeds.length, draws: [], drawing: 0 };
        report(state);
        // What was asked before is stopped at once; who cuts on and on is counted for only when done.
        worker.postMessage({ id, jobs: [] });
        clearTimeout(waiting);
        waiting = setTimeout(() => worker.postMessage({ id, jobs }), 150);
      },
    };
  }

  live.panel = { createCells, createCounter, markCells, readerName, roveCells, sourceName };
})(globalThis.DenseNetLive);
