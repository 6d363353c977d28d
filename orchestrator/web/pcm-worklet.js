/**
 * AudioWorklet: the microphone at the context's rate → mono int16 at 16 kHz, in chunks of 20 ms.
 *
 * Resampling is a polyphase low-pass filter (Kaiser-windowed sinc, β = 8: stop band below −80 dB from 8.2 kHz on when the
 * context runs at 48 kHz, flat to 6.8 kHz), so that nothing above 8 kHz folds back into the speech band.
 *
 * Messages in: `"begin"`, `"end"`. Messages out: an Int16Array (its buffer is transferred) per chunk, `"end"` when all of
 * the recording was sent.
 */

const OUT_RATE = 16_000;
const CHUNK = 320;
const HALF_LENGTH = 32; // of the filter, in samples of the lower of the two rates
const KAISER_BETA = 8;
const CUTOFF = 0.93; // of the lower rate's half

/** Modified Bessel function of the first kind, order 0. @param {number} x */
function bessel0(x) {
  let sum = 1;
  let term = 1;
  for (let k = 1; term > sum * 1e-12; k += 1) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

/** @param {number} a @param {number} b @returns {number} */
const gcd = (a, b) => (b ? gcd(b, a % b) : a);

/** A streaming rational resampler: input of any length in, the same output whatever the chunking. */
class Resampler {
  /** @param {number} inRate @param {number} outRate both in Hz, integers */
  constructor(inRate, outRate) {
    const common = gcd(inRate, outRate);
    this.up = outRate / common;
    this.down = inRate / common;
    const cutoff = (CUTOFF * Math.min(inRate, outRate)) / inRate; // of the input's half rate
    this.half = inRate === outRate ? 0 : Math.ceil((HALF_LENGTH * inRate) / Math.min(inRate, outRate));
    this.taps = 2 * this.half + 1;
    this.phases = Array.from({ length: this.up }, (_, phase) => this.#phase(phase / this.up, cutoff));
    this.history = new Float32Array(this.taps - 1);
    this.next = 0; // of the next output, in steps of 1/up input samples from the start of `history`
  }

  /** @param {number} fraction of an input sample @param {number} cutoff @returns {Float32Array} unit gain at 0 Hz */
  #phase(fraction, cutoff) {
    const taps = new Float64Array(this.taps);
    let sum = 0;
    for (let k = 0; k < this.taps; k += 1) {
      const t = k - this.half - fraction;
      const edge = this.half ? Math.min(1, Math.abs(t) / (this.half + 1)) : 0;
      const window = bessel0(KAISER_BETA * Math.sqrt(1 - edge * edge));
      const x = Math.PI * cutoff * t;
      taps[k] = window * (x === 0 ? 1 : Math.sin(x) / x);
      sum += taps[k];
    }
    return Float32Array.from(taps, (tap) => tap / sum);
  }

  /** @param {Float32Array} input @returns {number[]} */
  push(input) {
    const data = new Float32Array(this.history.length + input.length);
    data.set(this.history);
    data.set(input, this.history.length);
    const out = [];
    for (; Math.floor(this.next / this.up) + this.taps <= data.length; this.next += this.down) {
      const first = Math.floor(this.next / this.up);
      const taps = this.phases[this.next % this.up];
      let sum = 0;
      for (let k = 0; k < taps.length; k += 1) sum += taps[k] * data[first + k];
      out.push(sum);
    }
    const keep = this.taps - 1;
    this.next -= (data.length - keep) * this.up;
    this.history = data.slice(data.length - keep);
    return out;
  }
}

class PcmProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.recording = false;
    this.resampler = new Resampler(sampleRate, OUT_RATE);
    this.chunk = new Int16Array(CHUNK);
    this.filled = 0;
    this.port.onmessage = (event) => (event.data === "begin" ? this.#begin() : this.#end());
  }

  #begin() {
    this.resampler = new Resampler(sampleRate, OUT_RATE);
    this.filled = 0;
    this.recording = true;
  }

  #end() {
    if (this.recording && this.filled) this.#post(this.chunk.slice(0, this.filled));
    this.recording = false;
    this.port.postMessage("end");
  }

  /** @param {Int16Array} pcm */
  #post(pcm) {
    this.port.postMessage(pcm, [pcm.buffer]);
  }

  /** @param {Float32Array[][]} inputs */
  process([channels]) {
    if (!this.recording || !channels?.length) return true;
    for (const sample of this.resampler.push(mono(channels))) {
      this.chunk[this.filled] = Math.max(-32768, Math.min(32767, Math.round(sample * 32767)));
      this.filled += 1;
      if (this.filled < CHUNK) continue;
      this.#post(this.chunk);
      this.chunk = new Int16Array(CHUNK);
      this.filled = 0;
    }
    return true;
  }
}

/** @param {Float32Array[]} channels @returns {Float32Array} */
function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, k) => channels.reduce((sum, channel) => sum + channel[k], 0) / channels.length);
}

registerProcessor("pcm", PcmProcessor);
