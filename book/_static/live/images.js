// Pictures: those of the test set, one that the reader draws, one that the reader opens. All become 28 x 28 bytes,
// light on dark, as the network knows them.
(function (live) {
  "use strict";

  const normalize = (pixels, { mean, std }) => Float32Array.from(pixels, p => (p / 255 - mean) / std);

  /** Paint bytes, row by row, into a canvas of as many pixels. */
  function paint(canvas, pixels, side) {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    pixels.forEach((p, i) => image.data.set([p, p, p, 255], 4 * i));
    context.putImageData(image, 0, 0);
  }

  /** The middle square of a picture, grey, `side` pixels wide. One that has this size already stays as it is. */
  function shrink(picture, side, inverted) {
    const width = picture.naturalWidth ?? picture.width, height = picture.naturalHeight ?? picture.height;
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("2d", { willReadFrequently: true });
    // Halving again and again takes every pixel into account; one great leap would skip most of them.
    let size = Math.min(width, height), from = picture;
    let place = [(width - size) / 2, (height - size) / 2, size, size];
    const steps = [];
    for (let s = Math.min(size, 2048); s > 2 * side; s = Math.ceil(s / 2)) steps.push(s);
    for (const s of [...steps, side]) {
      const next = document.createElement("canvas");
      next.width = next.height = s;
      const brush = next.getContext("2d", { willReadFrequently: true });
      brush.fillStyle = "#fff"; // behind what is transparent
      brush.fillRect(0, 0, s, s);
      brush.imageSmoothingQuality = "high";
      brush.drawImage(from, ...place, 0, 0, s, s);
      [from, place] = [next, [0, 0, s, s]];
    }
    canvas.width = canvas.height = side;
    context.drawImage(from, 0, 0);
    const { data } = context.getImageData(0, 0, side, side);
    return Uint8Array.from({ length: side * side }, (_, i) => {
      const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
      const grey = r === g && g === b ? r : Math.round(0.299 * r + 0.587 * g + 0.114 * b); // as Pillow and the eye weigh it
      return inverted ? 255 - grey : grey;
    });
  }

  /** Mean brightness of the outermost pixels. */
  function edgeBrightness(pixels, side) {
    const edge = pixels.filter((_, i) => [0, side - 1].includes(i % side) || [0, side - 1].includes(Math.floor(i / side)));
    return edge.reduce((a, b) => a + b) / edge.length;
  }

  /** A file as a picture that can be drawn. */
  async function read(file) {
    const address = URL.createObjectURL(file), picture = new Image();
    try {
      picture.src = address;
      await picture.decode();
      return picture;
    } finally {
      URL.revokeObjectURL(address);
    }
  }

  /** A board of `side` x `side` pixels to draw on, with a pointer or with the keyboard. */
  function createBoard(canvas, side, settings, changed) {
    const pixels = new Uint8Array(side * side);
    const cursor = { x: side >> 1, y: side >> 1, shown: false };
    let last = null;

    function draw() {
      paint(canvas, pixels, side);
      if (!cursor.shown) return;
      const context = canvas.getContext("2d");
      context.fillStyle = "#e69f00";
      context.fillRect(cursor.x, cursor.y, 1, 1);
    }

    /** A soft disc around a point. */
    function stamp(x, y) {
      const { radius, erase } = settings();
      const reach = Math.ceil(radius + 1);
      for (let row = Math.floor(y) - reach; row <= y + reach; row++)
        for (let column = Math.floor(x) - reach; column <= x + reach; column++) {
          if (row < 0 || column < 0 || row >= side || column >= side) continue;
          const far = Math.hypot(column + 0.5 - x, row + 0.5 - y);
          const light = Math.round(255 * Math.min(1, Math.max(0, radius + 0.5 - far))), i = row * side + column;
          pixels[i] = erase ? Math.min(pixels[i], 255 - light) : Math.max(pixels[i], light);
        }
    }

    function line(to) {
      const from = last ?? to, steps = Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)) || 1;
      for (let s = 0; s <= steps; s++)
        stamp(from.x + (to.x - from.x) * s / steps, from.y + (to.y - from.y) * s / steps);
      last = to;
    }

    const place = event => {
      const box = canvas.getBoundingClientRect();
      return { x: (event.clientX - box.left) / box.width * side, y: (event.clientY - box.top) / box.height * side };
    };
    const refresh = () => {
      draw();
      changed(pixels);
    };

    canvas.addEventListener("pointerdown", event => {
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      last = null;
      cursor.shown = false;
      line(place(event));
      refresh();
    });
    canvas.addEventListener("pointermove", event => {
      if (!last) return;
      for (const each of event.getCoalescedEvents?.() ?? [event]) line(place(each));
      refresh();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
    canvas.addEventListener("keydown", event => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step && event.key !== " ") return;
      event.preventDefault();
      cursor.shown = true;
      if (step) {
        cursor.x = Math.min(side - 1, Math.max(0, cursor.x + step[0]));
        cursor.y = Math.min(side - 1, Math.max(0, cursor.y + step[1]));
      }
      if (event.key === " " || event.shiftKey) {
        stamp(cursor.x + 0.5, cursor.y + 0.5);
        changed(pixels);
      }
      draw();
    });
    canvas.addEventListener("blur", () => {
      cursor.shown = false;
      draw();
    });
    draw();
    return {
      fill(values) {
        pixels.set(values);
        refresh();
      },
      get pixels() { return pixels; },
    };
  }

  live.images = { createBoard, edgeBrightness, normalize, paint, read, shrink };
})(globalThis.DenseNetLive);
