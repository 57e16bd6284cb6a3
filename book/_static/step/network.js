// The small network of "Step through a block": forward with every map on the way, and backward, from one class's score
// to every feature map. Pure functions on Float32Array; features are (channels, height, width), as in PyTorch.
(function (step) {
  "use strict";

  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

  /** The network in `data` (data.js): the weights of each layer, and each batch norm as a scale and a shift. */
  function build(data) {
    const numbers = new Float32Array(bytes(data.float32).buffer), tensors = {};
    let start = 0;
    for (const [name, shape] of data.tensors) {
      const count = shape.reduce((a, b) => a * b, 1);
      tensors[name] = numbers.subarray(start, start += count);
    }
    // With fixed statistics, batch norm is one multiplication and one addition for each channel.
    const norm = name => {
      const [weight, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(
        part => tensors[`${name}.${part}`]);
      const scale = weight.map((w, c) => w / Math.sqrt(variance[c] + data.epsilon));
      return { scale, shift: bias.map((b, c) => b - mean[c] * scale[c]) };
    };
    const k = data.growthRate;
    const layers = Array.from({ length: data.layers }, (_, i) => {
      const name = `features.denseblock1.denselayer${i + 1}`, norm2 = norm(`${name}.norm2`);
      return {
        inputs: data.channels + i * k, width: norm2.scale.length, norm1: norm(`${name}.norm1`), norm2,
        conv1: tensors[`${name}.conv1.weight`], conv2: tensors[`${name}.conv2.weight`],
      };
    });
    return {
      k, layers, side: data.side, channels: data.channels, outputs: data.channels + data.layers * k,
      stem: tensors["features.conv0.weight"], norm5: norm("features.norm5"),
      classifier: tensors["classifier.weight"], bias: tensors["classifier.bias"],
    };
  }

  /** The first test image, normalised. */
  const pictureOf = data => Float32Array.from(bytes(data.pixels), v => (v / 255 - data.mean) / data.std);

  // Forward.

  const normalise = (x, { scale, shift }, pixels) =>
    x.map((v, i) => { const c = Math.floor(i / pixels); return scale[c] * v + shift[c]; });

  const relu = x => x.map(v => Math.max(0, v));

  /** A convolution with a window of 1 × 1 or 3 × 3, and a border of zeros. `weight` is (outputs, inputs, window, window). */
  function convolve(x, weight, inputs, outputs, side, window) {
    const pixels = side * side, reach = (window - 1) / 2, out = new Float32Array(outputs * pixels);
    for (let o = 0; o < outputs; o++)
      for (let c = 0; c < inputs; c++)
        for (let dy = -reach; dy <= reach; dy++)
          for (let dx = -reach; dx <= reach; dx++) {
            const w = weight[((o * inputs + c) * window + dy + reach) * window + dx + reach];
            for (let y = Math.max(0, -dy); y < side - Math.max(0, dy); y++)
              for (let i = Math.max(0, -dx); i < side - Math.max(0, dx); i++)
                out[o * pixels + y * side + i] += w * x[c * pixels + (y + dy) * side + i + dx];
          }
    return out;
  }

  /** Every map: of the stem, of each step of each layer, and of the whole block. */
  function run(network, picture) {
    const { side, k } = network, pixels = side * side, features = new Float32Array(network.outputs * pixels);
    features.set(convolve(picture, network.stem, 1, network.channels, side, 3));
    const layers = network.layers.map(layer => {
      const read = features.slice(0, layer.inputs * pixels);
      const norm1 = normalise(read, layer.norm1, pixels), relu1 = relu(norm1);
      const conv1 = convolve(relu1, layer.conv1, layer.inputs, layer.width, side, 1);
      const norm2 = normalise(conv1, layer.norm2, pixels), relu2 = relu(norm2);
      const conv2 = convolve(relu2, layer.conv2, layer.width, k, side, 3);
      features.set(conv2, layer.inputs * pixels);
      return { read, norm1, relu1, conv1, norm2, relu2, conv2 };
    });
    const last = normalise(features, network.norm5, pixels);
    const means = Float32Array.from({ length: network.outputs }, (_, c) =>
      relu(last.subarray(c * pixels, (c + 1) * pixels)).reduce((a, b) => a + b) / pixels);
    const scores = network.bias.map((b, o) =>
      means.reduce((sum, mean, c) => sum + mean * network.classifier[o * network.outputs + c], b));
    const powers = Array.from(scores, s => Math.exp(s - Math.max(...scores)));
    const probabilities = powers.map(p => p / powers.reduce((a, b) => a + b));
    return { picture, features, layers, last, scores, probabilities };
  }

  // Backward.

  /** The weights with which a convolution's gradient goes back: inputs and outputs change places, windows turn round. */
  function turned(weight, inputs, outputs, window) {
    const size = window * window, out = new Float32Array(weight.length);
    for (let o = 0; o < outputs; o++)
      for (let c = 0; c < inputs; c++)
        for (let i = 0; i < size; i++) out[(c * outputs + o) * size + i] = weight[(o * inputs + c) * size + size - 1 - i];
    return out;
  }

  /** The gradient before a norm and a ReLU: nothing where the ReLU gave zero. */
  const beforeNorm = (gradient, normed, { scale }, pixels) =>
    gradient.map((g, i) => (normed[i] > 0 ? g * scale[Math.floor(i / pixels)] : 0));

  /** The gradient of a class's score with regard to every map, and what each reader contributes to it.
   *
   * `passed[l]` is what layer l passes to all that it has read, and `passed[layers + 1]` what the classifier does;
   * `total` is the sum, for every map of the block. */
  function backward(network, trace, target) {
    const { side, k, outputs } = network, pixels = side * side, count = network.layers.length;
    const total = new Float32Array(outputs * pixels), passed = [];
    const add = part => part.forEach((g, i) => { total[i] += g; });
    const even = total.map((_, i) => network.classifier[target * outputs + Math.floor(i / pixels)] / pixels);
    passed[count + 1] = beforeNorm(even, trace.last, network.norm5, pixels);
    add(passed[count + 1]);
    for (let l = count; l >= 1; l--) {
      const layer = network.layers[l - 1], maps = trace.layers[l - 1];
      const own = total.slice(layer.inputs * pixels, (layer.inputs + k) * pixels);
      const narrow = convolve(own, turned(layer.conv2, layer.width, k, 3), k, layer.width, side, 3);
      const middle = beforeNorm(narrow, maps.norm2, layer.norm2, pixels);
      const wide = convolve(middle, turned(layer.conv1, layer.inputs, layer.width, 1), layer.width, layer.inputs, side, 1);
      passed[l] = beforeNorm(wide, maps.norm1, layer.norm1, pixels);
      add(passed[l]);
    }
    return { passed, total };
  }

  step.network = { backward, build, pictureOf, run };
})(globalThis.DenseNetStep ??= {});
