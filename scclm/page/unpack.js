"use strict";
// Weights as text: a page opened from a disk may load scripts, and nothing else.
function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// The number that a half float stands for: sign, 5 bits of exponent, 10 of fraction.
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

// One tensor as floats: int8 rows times their scales, halves, or floats as they are.
function floatsOf(buffer, { kind, rows, cols, at, scales }) {
  const size = rows * cols;
  if (kind === "float32") return new Float32Array(buffer, at, size);
  const floats = new Float32Array(size);
  if (kind === "float16") {
    const halves = new Uint16Array(buffer, at, size);
    for (let i = 0; i < size; i++) floats[i] = fromHalf(halves[i]);
    return floats;
  }
  const bytes = new Int8Array(buffer, at, size), scale = new Float32Array(buffer, scales, rows);
  for (let row = 0, i = 0; row < rows; row++) {
    for (const end = i + cols; i < end; i++) floats[i] = bytes[i] * scale[row];
  }
  return floats;
}

// name -> {rows, cols, data}
function readTensors(buffer, { tensors }) {
  return new Map(tensors.map((t) => [t.name, { rows: t.rows, cols: t.cols, data: floatsOf(buffer, t) }]));
}
