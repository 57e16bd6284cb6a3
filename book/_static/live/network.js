// The network: what each part computes, from a picture to probabilities, and what each number is the sum of.
// Pure functions on Float32Array, with no page in sight, so that a Worker can run the same text.
//
// Why no library: onnxruntime-web 1.30 brings 14 MB of WebAssembly. Of TensorFlow.js 4.22, core and CPU backend would fit
// (0.4 MB), but they are plain JavaScript as well, and what is wanted here is every map and every sum on the way.
//
// Features are (channels, height, width), one after the other, as in PyTorch. Blocks, layers and readers are counted from 1;
// source 0 is a block's input; the reader behind the last layer is the transition, or, in the last block, the classifier.
(function define(live) {
  "use strict";

  /** Float16 values, base64, as a Float32Array. */
  function decodeHalf(text) {
    const bytes = decodeBytes(text);
    const halves = new Uint16Array(bytes.buffer);
    return Float32Array.from(halves, bits => {
      const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
      if (exponent === 0) return sign * 2 ** -24 * fraction;
      return exponent === 31 ? NaN : sign * 2 ** (exponent - 25) * (1024 + fraction);
    });
  }

  const decodeBytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

  /** The network in `weights` (data-weights.js): its tensors by name, its norms as scale and shift. */
  function build(weights) {
    const values = decodeHalf(weights.float16);
    const tensors = {}, sizes = {};
    let start = 0;
    for (const [name, shape] of weights.tensors) {
      const count = shape.reduce((a, b) => a * b, 1);
      tensors[name] = values.subarray(start, start + count);
      sizes[name] = shape;
      start += count;
    }
    // Batch norm with fixed statistics is one multiplication and one addition for each channel.
    const norm = name => {
      const [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(
        part => tensors[`${name}.${part}`]);
      const scale = gamma.map((g, c) => g / Math.sqrt(variance[c] + weights.epsilon));
      return { scale, shift: beta.map((b, c) => b - mean[c] * scale[c]) };
    };
    const stem = tensors["features.conv0.weight"];
    let channels = sizes["features.conv0.weight"][0];
    const blocks = weights.blocks.map((count, b) => {
      const input = channels, layers = [];
      for (let l = 1; l <= count; l++) {
        const name = `features.denseblock${b + 1}.denselayer${l}`;
        layers.push({
          inputs: channels, width: sizes[`${name}.conv1.weight`][0],
          norm1: norm(`${name}.norm1`), conv1: tensors[`${name}.conv1.weight`],
          norm2: norm(`${name}.norm2`), conv2: tensors[`${name}.conv2.weight`],
        });
        channels += weights.growthRate;
      }
      const last = b + 1 === weights.blocks.length, name = `features.transition${b + 1}`;
      const end = last
        ? { norm: norm("features.norm5"), conv: tensors["classifier.weight"], bias: tensors["classifier.bias"] }
        : { norm: norm(`${name}.norm`), conv: tensors[`${name}.conv.weight`] };
      end.inputs = channels;
      end.outputs = channels = sizes[last ? "classifier.weight" : `${name}.conv.weight`][0];
      return { number: b + 1, input, layers, end, last };
    });
    return { growthRate: weights.growthRate, stem, stemChannels: blocks[0].input, blocks };
  }

  /** First channel and number of channels of a source. */
  const channelsOf = (network, block, source) => source === 0
    ? [0, block.input] : [block.input + (source - 1) * network.growthRate, network.growthRate];

  const key = (block, from, to) => `${block}:${from}:${to}`;

  /** Every connection, as [block, from, to]. */
  function connections(network) {
    return network.blocks.flatMap(block => {
      const found = [];
      for (let to = 1; to <= block.layers.length + 1; to++)
        for (let from = 0; from < to; from++) found.push([block.number, from, to]);
      return found;
    });
  }

  /** For each channel that reader `to` of a block reads, whether its connection is cut. */
  function cutChannels(network, block, to, cuts) {
    const mask = new Uint8Array(block.input + (to - 1) * network.growthRate);
    for (let from = 0; from < to; from++) {
      if (!cuts.has(key(block.number, from, to))) continue;
      const [start, count] = channelsOf(network, block, from);
      mask.fill(1, start, start + count);
    }
    return mask;
  }

  /** relu(scale * x + shift) of the first `channels` maps. */
  function normRelu(x, { scale, shift }, channels, pixels) {
    const out = new Float32Array(channels * pixels);
    for (let c = 0; c < channels; c++) {
      const a = scale[c], b = shift[c];
      for (let i = c * pixels, end = i + pixels; i < end; i++) {
        const value = a * x[i] + b;
        out[i] = value > 0 ? value : 0;
      }
    }
    return out;
  }

  /** A 1x1 convolution: each output map is a weighted sum of the input maps that are not cut. */
  function conv1(x, weight, inputs, outputs, pixels, cut) {
    const out = new Float32Array(outputs * pixels);
    const read = [...Array(inputs).keys()].filter(c => !cut || !cut[c]);
    // Four maps at a time, which takes half as long as one.
    const whole = read.length - read.length % 4;
    for (let o = 0; o < outputs; o++) {
      const to = o * pixels, row = o * inputs;
      for (let r = 0; r < whole; r += 4) {
        const a = read[r], b = read[r + 1], c = read[r + 2], d = read[r + 3];
        const wa = weight[row + a], wb = weight[row + b], wc = weight[row + c], wd = weight[row + d];
        const ia = a * pixels, ib = b * pixels, ic = c * pixels, id = d * pixels;
        for (let p = 0; p < pixels; p++)
          out[to + p] += wa * x[ia + p] + wb * x[ib + p] + wc * x[ic + p] + wd * x[id + p];
      }
      for (let r = whole; r < read.length; r++) {
        const w = weight[row + read[r]], from = read[r] * pixels;
        for (let p = 0; p < pixels; p++) out[to + p] += w * x[from + p];
      }
    }
    return out;
  }

  /** The maps with a border of zeros, one pixel wide. */
  function pad(x, channels, side) {
    const wide = side + 2, out = new Float32Array(channels * wide * wide);
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < side; y++) {
        const from = (c * side + y) * side;
        out.set(x.subarray(from, from + side), (c * wide + y + 1) * wide + 1);
      }
    return out;
  }

  /** A 3x3 convolution with a border of zeros; the result is added to `out`, from `start` on. */
  function conv3(x, weight, inputs, outputs, side, out, start) {
    const padded = pad(x, inputs, side), wide = side + 2, pixels = side * side;
    for (let o = 0; o < outputs; o++) {
      for (let c = 0; c < inputs; c++) {
        const k = (o * inputs + c) * 9;
        const w0 = weight[k], w1 = weight[k + 1], w2 = weight[k + 2];
        const w3 = weight[k + 3], w4 = weight[k + 4], w5 = weight[k + 5];
        const w6 = weight[k + 6], w7 = weight[k + 7], w8 = weight[k + 8];
        for (let y = 0; y < side; y++) {
          let a = (c * wide + y) * wide, b = a + wide, d = b + wide;
          for (let to = start + o * pixels + y * side, end = to + side; to < end; to++, a++, b++, d++)
            out[to] += w0 * padded[a] + w1 * padded[a + 1] + w2 * padded[a + 2]
              + w3 * padded[b] + w4 * padded[b + 1] + w5 * padded[b + 2]
              + w6 * padded[d] + w7 * padded[d + 1] + w8 * padded[d + 2];
        }
      }
    }
  }

  /** Means of 2x2 pixels. */
  function pool2(x, channels, side) {
    const half = side >> 1, out = new Float32Array(channels * half * half);
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < half; y++)
        for (let i = 0; i < half; i++) {
          const from = (c * side + 2 * y) * side + 2 * i;
          out[(c * half + y) * half + i] = (x[from] + x[from + 1] + x[from + side] + x[from + side + 1]) / 4;
        }
    return out;
  }

  /** Means of whole maps. */
  function poolAll(x, channels, pixels) {
    const out = new Float32Array(channels);
    for (let c = 0; c < channels; c++) {
      let sum = 0;
      for (let p = 0; p < pixels; p++) sum += x[c * pixels + p];
      out[c] = sum / pixels;
    }
    return out;
  }

  function softmax(logits) {
    const most = Math.max(...logits), powers = Array.from(logits, v => Math.exp(v - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map(v => v / sum);
  }

  /** The stem's maps of a normalised picture. */
  function runStem(network, picture, side) {
    const out = new Float32Array(network.stemChannels * side * side);
    conv3(picture, network.stem, 1, network.stemChannels, side, out, 0);
    return out;
  }

  /** One block and what reads its output. `features` of the result is the strip that grows: the input, then each layer. */
  function runBlock(network, block, input, side, cuts) {
    const pixels = side * side, k = network.growthRate;
    const features = new Float32Array(block.end.inputs * pixels);
    features.set(input);
    const layers = block.layers.map((layer, index) => {
      const cut = cutChannels(network, block, index + 1, cuts);
      // A cut is made where remove_connection makes it: behind norm and ReLU, in the weights of the 1x1 convolution.
      const read = normRelu(features, layer.norm1, layer.inputs, pixels);
      const bottleneck = conv1(read, layer.conv1, layer.inputs, layer.width, pixels, cut);
      const active = normRelu(bottleneck, layer.norm2, layer.width, pixels);
      conv3(active, layer.conv2, layer.width, k, side, features, layer.inputs * pixels);
      return { bottleneck, active };
    });
    const { end } = block, cut = cutChannels(network, block, block.layers.length + 1, cuts);
    const read = normRelu(features, end.norm, end.inputs, pixels);
    // Means first, then the 1x1 convolution: the other order gives the same with four times the work (chapter 4).
    const means = block.last ? poolAll(read, end.inputs, pixels) : pool2(read, end.inputs, side);
    const output = conv1(means, end.conv, end.inputs, end.outputs, block.last ? 1 : pixels / 4, cut);
    if (end.bias) for (let o = 0; o < end.outputs; o++) output[o] += end.bias[o];
    return { side, features, layers, means, output };
  }

  /** All of it: a trace with every map. `before`, an earlier trace of the picture, saves the blocks before `first`. */
  function run(network, picture, side, cuts = new Set(), before = null, first = 1) {
    const stem = before ? before.stem : runStem(network, picture, side);
    const trace = { picture, side, cuts, stem, blocks: [] };
    let input = stem;
    network.blocks.forEach((block, b) => {
      const size = side >> b;
      const kept = before && block.number < first;
      const done = kept ? before.blocks[b] : runBlock(network, block, input, size, cuts);
      trace.blocks.push(done);
      input = done.output;
    });
    trace.logits = input;
    trace.probabilities = softmax(input);
    return trace;
  }

  /** The logits, from the input of block `first` on. */
  function finish(network, input, side, cuts, first) {
    for (const block of network.blocks.slice(first - 1)) {
      input = runBlock(network, block, input, side >> (block.number - 1), cuts).output;
    }
    return input;
  }

  const largest = values => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

  /** The first block in which something is cut; the block after the last if nothing is. */
  function firstCutBlock(network, cuts) {
    const blocks = [...cuts].map(name => Number(name.split(":")[0]));
    return Math.min(network.blocks.length + 1, ...blocks);
  }

  /** Mean absolute weight of a connection, as insight.feature_reuse has it. */
  function reuse(network, block, from, to) {
    const reader = block.layers[to - 1];
    const [weight, inputs, outputs] = reader
      ? [reader.conv1, reader.inputs, reader.width] : [block.end.conv, block.end.inputs, block.end.outputs];
    const [start, count] = channelsOf(network, block, from);
    let sum = 0;
    for (let o = 0; o < outputs; o++)
      for (let c = start; c < start + count; c++) sum += Math.abs(weight[o * inputs + c]);
    return sum / (outputs * count);
  }

  // What a number is the sum of.

  /** The nine products of a 3x3 window: [{ y, x, input, weight, product }], with zeros outside of the map. */
  function windowOf(map, weight, side, y, x) {
    return Array.from(weight, (w, i) => {
      const row = y + Math.floor(i / 3) - 1, column = x + i % 3 - 1;
      const inside = row >= 0 && column >= 0 && row < side && column < side;
      const input = inside ? map[row * side + column] : 0;
      return { y: row, x: column, inside, input, weight: w, product: input * w };
    });
  }

  const total = terms => terms.reduce((sum, term) => sum + term.product, 0);

  /** One pixel of a map of the stem: nine products. */
  function explainStem(network, trace, map, y, x) {
    const terms = windowOf(trace.picture, network.stem.subarray(map * 9, map * 9 + 9), trace.side, y, x);
    return { value: trace.stem[(map * trace.side + y) * trace.side + x], terms };
  }

  /** One pixel of a layer's map: for each bottleneck map, nine products and their sum. */
  function explainLayer(network, trace, number, l, map, y, x) {
    const block = network.blocks[number - 1], layer = block.layers[l - 1], done = trace.blocks[number - 1];
    const { side } = done, pixels = side * side, k = (map * layer.width) * 9;
    const terms = Array.from({ length: layer.width }, (_, c) => {
      const maps = done.layers[l - 1].active.subarray(c * pixels, (c + 1) * pixels);
      const nine = windowOf(maps, layer.conv2.subarray(k + c * 9, k + c * 9 + 9), side, y, x);
      return { channel: c, window: nine, product: total(nine) };
    });
    return { value: done.features[(layer.inputs + map) * pixels + y * side + x], terms };
  }

  /** One number behind a 1x1 convolution: what each source gives, and each of its channels.
   *
   * Reader `to` is a layer (then `map` is one of its bottleneck maps), a transition, or the classifier. */
  function explainReader(network, trace, number, to, map, y, x) {
    const block = network.blocks[number - 1], done = trace.blocks[number - 1], { side, features } = done;
    const pixels = side * side, layer = block.layers[to - 1];
    const reader = layer
      ? { norm: layer.norm1, weight: layer.conv1, inputs: layer.inputs }
      : { norm: block.end.norm, weight: block.end.conv, inputs: block.end.inputs };
    const places = layer ? [y * side + x] : block.last ? [...Array(pixels).keys()]
      : [0, 1, side, side + 1].map(step => 2 * y * side + 2 * x + step);
    const sources = [];
    for (let from = 0; from < to; from++) {
      const cut = trace.cuts.has(key(number, from, to));
      const [start, count] = channelsOf(network, block, from);
      const channels = Array.from({ length: count }, (_, i) => {
        const c = start + i, scale = reader.norm.scale[c], shift = reader.norm.shift[c];
        const values = places.map(p => features[c * pixels + p]);
        const read = values.reduce((sum, v) => sum + Math.max(0, scale * v + shift), 0) / places.length;
        const weight = cut ? 0 : reader.weight[map * reader.inputs + c];
        return { channel: i, values, scale, shift, read, weight, product: read * weight };
      });
      sources.push({ from, cut, channels, product: total(channels) });
    }
    const bias = !layer && block.last ? block.end.bias[map] : 0;
    const value = layer
      ? done.layers[to - 1].bottleneck[map * pixels + y * side + x]
      : block.last ? done.output[map] : done.output[(map * (side >> 1) + y) * (side >> 1) + x];
    return { value, bias, sources };
  }

  /** `values` as whole numbers of the last shown digit, rounded so that they add up to the rounded `sum`. */
  function roundTogether(values, sum, digits) {
    const unit = 10 ** digits;
    const exact = values.map(v => v * unit), rounded = exact.map(Math.round);
    let missing = Math.round(sum * unit) - rounded.reduce((a, b) => a + b, 0);
    const step = Math.sign(missing);
    // Those that lie nearest to the next number up, or down, take the step.
    const order = exact.map((v, i) => i).sort((i, j) => step * ((exact[j] - rounded[j]) - (exact[i] - rounded[i])));
    for (let i = 0; missing !== 0; i = (i + 1) % order.length, missing -= step) rounded[order[i]] += step;
    return rounded.map(v => v / unit);
  }

  /** A seeded generator of numbers from 0 to 1 (mulberry32), for random cuts that are the same for every reader. */
  function random(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** As many cuts in each block as `cuts` has there, drawn at random. */
  function randomCuts(network, cuts, seed) {
    const draw = random(seed), drawn = new Set();
    for (const { number } of network.blocks) {
      const open = connections(network).filter(([block]) => block === number);
      const count = [...cuts].filter(name => name.startsWith(`${number}:`)).length;
      for (let i = 0; i < count; i++) {
        const [chosen] = open.splice(Math.floor(draw() * open.length), 1);
        drawn.add(key(...chosen));
      }
    }
    return drawn;
  }

  live.network = {
    build, connections, decodeBytes, explainLayer, explainReader, explainStem, finish, firstCutBlock, key, largest,
    random, randomCuts, reuse, roundTogether, run, source: `(${define})`,
  };
})(globalThis.DenseNetLive ??= {});
