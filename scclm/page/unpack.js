"use strict";
// Weights as text: a page opened from a disk may load scripts, and nothing else.
function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
}

// The numbers of a half float: sign, 5 bits of exponent, 10 of fraction.
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

// name -> {rows, cols, data}: int8 rows times their scales, halves, or floats as they are.
function readTensors(buffer, { tensors }) {
  const open = { int8: Int8Array, float16: Uint16Array, float32: Float32Array };
  return new Map(tensors.map(({ name, kind, rows, cols, at, scales }) => {
    const raw = new open[kind](buffer, at, rows * cols);
    let data = raw;
    if (kind === "float16") data = Float32Array.from(raw, fromHalf);
    if (kind === "int8") {
      const scale = new Float32Array(buffer, scales, rows);
      data = Float32Array.from(raw, (v, i) => v * scale[Math.floor(i / cols)]);
    }
    return [name, { rows, cols, data }];
  }));
}
