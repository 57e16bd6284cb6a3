// The arithmetic of a DenseNet: shapes, parameters, multiply-adds, and the bytes that autograd holds between the
// forward and the backward pass. Nothing here knows of a page. The numbers are those of the package: parameters as
// `numel` counts them, multiply-adds as `insight.part_costs`, bytes as `memory.saved_activation_bytes` in training
// mode, in float32. tests/site/test_explorer.py compares them.
//
// Files of the explorer are plain scripts that share one object, since modules do not load from disk.
"use strict";

(function (explorer) {
  const FLOAT = 4;  // bytes
  const IMAGE_CHANNELS = 3;
  const MODES = ["plain", "checkpoint", "recompute", "minimal"];

  const imagenet = { numInitFeatures: 64, numClasses: 1000, stem: "imagenet", bnSize: 4, compression: 0.5, inputSize: 224 };
  const cifar = { numInitFeatures: 24, numClasses: 10, stem: "cifar", bnSize: 4, compression: 0.5, inputSize: 32 };

  // The named models of the package, and the block that comes back in every chapter.
  const NAMED = {
    densenet121: { ...imagenet, growthRate: 32, blockConfig: [6, 12, 24, 16] },
    densenet161: { ...imagenet, growthRate: 48, blockConfig: [6, 12, 36, 24], numInitFeatures: 96 },
    densenet169: { ...imagenet, growthRate: 32, blockConfig: [6, 12, 32, 32] },
    densenet201: { ...imagenet, growthRate: 32, blockConfig: [6, 12, 48, 32] },
    densenet264: { ...imagenet, growthRate: 32, blockConfig: [6, 12, 64, 48] },
    densenet_bc: { ...cifar, growthRate: 12, blockConfig: [16, 16, 16], numInitFeatures: null },
    densenet_bc_100_12: { ...cifar, growthRate: 12, blockConfig: [16, 16, 16] },
    densenet_bc_250_24: { ...cifar, growthRate: 24, blockConfig: [41, 41, 41], numInitFeatures: 48 },
    densenet_bc_190_40: { ...cifar, growthRate: 40, blockConfig: [31, 31, 31], numInitFeatures: 80 },
    densenet_40_12: { ...cifar, growthRate: 12, blockConfig: [12, 12, 12], numInitFeatures: 16, bnSize: null, compression: 1 },
    small_block: { ...cifar, growthRate: 4, blockConfig: [4], numInitFeatures: 8, inputSize: 28 },
  };

  /** The network part by part. `config` has the fields of NAMED; all of it is for `batchSize` images. */
  function describe(config, batchSize = 1) {
    const { growthRate: k, blockConfig, numClasses, stem, bnSize, compression } = config;
    let channels = config.numInitFeatures ?? 2 * k;
    let size = config.inputSize;  // height and width
    const parts = [], blocks = [];

    // Kept for the backward pass: `floats` for every image, and `once` numbers for the whole batch.
    const bytes = (floats, once = 0) => FLOAT * (batchSize * floats + once);
    const statistics = (c) => 2 * c;  // a norm's mean and inverse standard deviation of each channel
    const add = (name, shape, parameters, multiplyAdds, memory) => parts.push({ name, shape, parameters, multiplyAdds, memory });
    const inMode = (plain, checkpoint, recompute, minimal) => ({ plain, checkpoint, recompute, minimal });

    if (stem === "imagenet") {
      const convolved = Math.floor((size - 1) / 2) + 1;
      const pooled = Math.floor((convolved - 1) / 2) + 1;
      const values = channels * convolved ** 2;
      const indices = channels * pooled ** 2;  // of the max pooling: 8 bytes each, 4 if we write them ourselves
      const usual = bytes(2 * values + 2 * indices, statistics(channels));
      const ours = bytes(values + indices, statistics(channels));
      const weights = 49 * IMAGE_CHANNELS * channels;
      add("stem", [channels, pooled, pooled], weights + 2 * channels, weights * convolved ** 2, inMode(usual, usual, ours, ours));
      size = pooled;
    } else {
      const weights = 9 * IMAGE_CHANNELS * channels;
      add("stem", [channels, size, size], weights, weights * size ** 2, inMode(0, 0, 0, 0));
    }

    blockConfig.forEach((numLayers, index) => {
      const pixels = size ** 2;
      const block = { number: index + 1, input: channels, growthRate: k, bnSize, numLayers, size, layers: [] };
      let parameters = 0, weights = 0, plain = 0, checkpoint = 0, recompute = 0, minimal = 0;
      for (let number = 1; number <= numLayers; number++) {
        const reads = channels + (number - 1) * k;
        const layer = { number, reads, adds: k, width: bnSize === null ? null : bnSize * k, ...layerWeights(reads, k, bnSize) };
        block.layers.push(layer);
        weights += layer.weights;
        parameters += layer.weights + 2 * reads;
        plain += bytes(2 * reads * pixels, statistics(reads));  // the input of norm1, the output of relu1
        if (bnSize !== null) {
          const width = bnSize * k;
          parameters += 2 * width;
          plain += bytes(2 * width * pixels, statistics(width));
          checkpoint += bytes(2 * width * pixels, statistics(width));
          recompute += bytes(width * pixels, statistics(width));
          minimal += bytes(0, statistics(width));
        }
      }
      const output = channels + numLayers * k;
      // A checkpoint keeps what its layer reads, in pieces that layers share; nobody reads the last layer's.
      checkpoint += bytes((output - k) * pixels);
      // One buffer for the block, with three statistics of each channel.
      const buffer = bytes(output * pixels, 3 * output);
      recompute += buffer;
      minimal += buffer;
      channels = block.output = output;
      add(`denseblock${block.number}`, [channels, size, size], parameters, weights * pixels, inMode(plain, checkpoint, recompute, minimal));
      blocks.push(block);

      if (index === blockConfig.length - 1) return;
      const kept = compressed(channels, compression);
      const usual = bytes(2 * channels * pixels + kept * pixels, statistics(channels));
      // Ours reads the block's buffer and its statistics, and pools before it convolves.
      size = Math.floor(size / 2);
      add(`transition${block.number}`, [kept, size, size], 2 * channels + channels * kept, channels * kept * pixels, inMode(usual, usual, 0, 0));
      block.kept = kept;
      channels = kept;
    });

    const pixels = size ** 2;
    const usual = bytes(2 * channels * pixels, statistics(channels));
    const ours = bytes(channels * pixels, statistics(channels));  // the norm's input is the last block's buffer
    add("final", [channels, size, size], 2 * channels, 0, inMode(usual, usual, ours, ours));
    const pooled = bytes(channels);
    add("classifier", [numClasses], channels * numClasses + numClasses, channels * numClasses, inMode(pooled, pooled, pooled, pooled));

    const sum = (of) => parts.reduce((total, part) => total + of(part), 0);
    const memory = Object.fromEntries(MODES.map((mode) => [mode, sum((part) => part.memory[mode])]));
    return {
      config, parts, blocks, memory, batchSize,
      parameters: sum((part) => part.parameters),
      multiplyAdds: sum((part) => part.multiplyAdds),
      // Batch norm needs more than one value of each channel.
      trainable: batchSize * pixels > 1,
      depth: blockConfig.reduce((a, b) => a + b, 0) * (bnSize === null ? 1 : 2) + blockConfig.length + 1,
    };
  }

  /** Weights of a layer's convolutions. */
  function layerWeights(reads, k, bnSize) {
    if (bnSize === null) return { first: 0, second: 9 * reads * k, weights: 9 * reads * k };
    const first = reads * bnSize * k, second = 9 * bnSize * k * k;
    return { first, second, weights: first + second };
  }

  /** Channels that a transition gives out. Not 28 for 100 * 0.29, which is 28.999… in floating point. */
  function compressed(channels, compression) {
    return Math.floor(channels * compression + 1e-9);
  }

  /** The least height and width: one pixel is left for the last block. */
  function minSize(blocks, stem) {
    return stem === "imagenet" ? 4 * (2 ** (blocks - 1) - 1) + 1 : 2 ** (blocks - 1);
  }

  /** What layer `number` of a block reads, source by source: source 0 is the block's input. */
  function sources(block, number) {
    return Array.from({ length: number }, (_, source) => (source === 0 ? block.input : block.growthRate));
  }

  /** The three wirings of a block. Plain and residual layers are 3x3 convolutions, as wide as the block ends. */
  function compareWirings(block) {
    const layers = block.numLayers, wide = block.output;
    const stacked = { connections: layers, reads: wide, makes: wide, weights: layers * 9 * wide ** 2 };
    return {
      plain: { ...stacked, exponent: 0 },  // 2 ** exponent paths from the block's input to its output
      residual: { ...stacked, exponent: layers },
      dense: {
        connections: (layers * (layers + 1)) / 2,
        exponent: layers,
        reads: block.layers[layers - 1].reads,
        makes: block.growthRate,
        weights: block.layers.reduce((total, layer) => total + layer.weights, 0),
      },
    };
  }

  /** A bottleneck saves weights in layers that read more channels than this; `null` if never. */
  function crossing(k, bnSize) {
    return bnSize < 9 ? (9 * bnSize * k) / (9 - bnSize) : null;
  }

  // ------------------------------------------------------------------------------------------- reading what is typed

  const LARGEST = { growthRate: 512, numInitFeatures: 4096, numClasses: 1000000, bnSize: 64, inputSize: 2048, batchSize: 4096 };
  const MOST_BLOCKS = 8, MOST_LAYERS = 512;

  const whole = (most) => ({
    valid: `a whole number from 1 to ${grouped(most)}`,
    read: (text) => (/^\d{1,9}$/.test(text) && +text >= 1 && +text <= most ? +text : undefined),
  });
  const orNone = (kind, meaning) => ({
    valid: `${kind.valid}, or none ${meaning}`,
    read: (text) => (text.toLowerCase() === "none" ? null : kind.read(text)),
  });
  const FIELDS = {
    growthRate: whole(LARGEST.growthRate),
    blockConfig: {
      valid: `1 to ${MOST_BLOCKS} whole numbers with commas between them, at most ${MOST_LAYERS} layers in all`,
      read(text) {
        const numbers = text.replace(/^[([]|[)\]]$/g, "").split(",").map((each) => whole(MOST_LAYERS).read(each.trim()));
        const layers = numbers.reduce((a, b) => a + b, 0);  // not a number if one is undefined
        return layers <= MOST_LAYERS && numbers.length <= MOST_BLOCKS ? numbers : undefined;
      },
    },
    numInitFeatures: orNone(whole(LARGEST.numInitFeatures), "for 2k"),
    numClasses: whole(LARGEST.numClasses),
    stem: { valid: "imagenet or cifar", read: (text) => (["imagenet", "cifar"].includes(text) ? text : undefined) },
    bnSize: orNone(whole(LARGEST.bnSize), "for no bottleneck"),
    compression: {
      valid: "a number above 0 and at most 1",
      read: (text) => (/^(\d+\.?\d*|\.\d+)$/.test(text) && +text > 0 && +text <= 1 ? +text : undefined),
    },
    inputSize: whole(LARGEST.inputSize),
    batchSize: whole(LARGEST.batchSize),
  };

  /** A configuration from what was typed, and by field what is wrong with it, in words. */
  function read(texts) {
    const values = {}, errors = {};
    for (const [field, { valid, read }] of Object.entries(FIELDS)) {
      values[field] = read(texts[field].trim());
      if (values[field] === undefined) errors[field] = `Needs to be ${valid}.`;
    }
    const { blockConfig, stem, compression, inputSize, growthRate } = values;
    if (blockConfig && stem && inputSize && inputSize < minSize(blockConfig.length, stem)) {
      const least = minSize(blockConfig.length, stem);
      errors.inputSize = `Needs to be at least ${least}, so that the last block has a pixel, and at most ${grouped(LARGEST.inputSize)}.`;
    }
    if (blockConfig && growthRate && compression && values.numInitFeatures !== undefined) {
      let channels = values.numInitFeatures ?? 2 * growthRate;
      for (const numLayers of blockConfig.slice(0, -1)) {
        channels += numLayers * growthRate;
        if (compressed(channels, compression) === 0) {
          errors.compression = `Needs to leave at least 1 of ${channels} channels.`;
          break;
        }
        channels = compressed(channels, compression);
      }
    }
    const { batchSize, ...config } = values;
    if (!Object.keys(errors).length) {
      const network = describe(config, batchSize);
      const most = Math.max(network.parameters, network.multiplyAdds, network.memory.plain);
      if (most > Number.MAX_SAFE_INTEGER) errors.blockConfig = "This network is too large to be counted exactly in a page.";
    }
    return { config, batchSize, errors };
  }

  /** A whole number with commas between groups of three digits. */
  function grouped(number) {
    return number.toLocaleString("en-US");
  }

  /** What a field shows for a value of a configuration. */
  function shown(value) {
    return value === null ? "none" : Array.isArray(value) ? value.join(", ") : String(value);
  }

  Object.assign(explorer, {
    MODES, NAMED, FIELDS,
    describe, minSize, sources, compareWirings, crossing, layerWeights, read, grouped, shown,
  });
})((globalThis.DenseNetExplorer ??= {}));
