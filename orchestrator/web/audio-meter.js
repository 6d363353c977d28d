/**
 * Level of an audio track, and the moments at which it starts and falls silent. The browser has no event for either, so an
 * `AnalyserNode` is sampled every 20 ms.
 *
 * @module audio-meter
 */

const LOUD_RMS = 10 ** (-45 / 20);
const PERIOD_MS = 20;
const QUIET_PERIODS = 4;

export class AudioMeter {
  /** @param {AudioContext} context running, made in a click */
  constructor(context) {
    this.context = context;
    this.analyser = new AnalyserNode(context, { fftSize: 1024 });
    this.samples = new Float32Array(this.analyser.fftSize);
    /** @type {MediaStreamAudioSourceNode|null} */
    this.source = null;
    /** What is measured. @type {MediaStreamTrack|null} */
    this.track = null;
    this.rms = 0;
    this.quietFor = QUIET_PERIODS;
    /** @type {{loud: boolean, resolve: (at: number) => void}[]} */
    this.waiting = [];
    this.timer = 0;
  }

  /** @param {MediaStreamTrack} track that is played, or the microphone's */
  attach(track) {
    this.detach();
    this.track = track;
    this.source = this.context.createMediaStreamSource(new MediaStream([track]));
    this.source.connect(this.analyser);
    this.timer = setInterval(() => this.#measure(), PERIOD_MS);
  }

  detach() {
    clearInterval(this.timer);
    this.source?.disconnect();
    this.source = null;
    this.track = null;
    this.rms = 0;
    this.quietFor = QUIET_PERIODS;
    this.waiting = [];
  }

  get loud() {
    return this.quietFor < QUIET_PERIODS;
  }

  /** Level for a meter, 0 … 1 over the 50 dB below full scale. */
  get level() {
    return Math.max(0, Math.min(1, 1 + (20 * Math.log10(this.rms + 1e-9)) / 50));
  }

  /** Resolves with the `performance.now()` at which audio starts next. @returns {Promise<number>} */
  nextOnset() {
    return new Promise((resolve) => this.waiting.push({ loud: true, resolve }));
  }

  /** Resolves with the `performance.now()` at which the audio fell silent. @returns {Promise<number>} */
  nextSilence() {
    return new Promise((resolve) => this.waiting.push({ loud: false, resolve }));
  }

  #measure() {
    this.analyser.getFloatTimeDomainData(this.samples);
    let sum = 0;
    for (const sample of this.samples) sum += sample * sample;
    this.rms = Math.sqrt(sum / this.samples.length);
    this.quietFor = this.rms > LOUD_RMS ? 0 : this.quietFor + 1;
    const began = this.quietFor === 0;
    const ended = this.quietFor >= QUIET_PERIODS;
    const at = performance.now() - (ended ? QUIET_PERIODS * PERIOD_MS : 0);
    this.waiting = this.waiting.filter(({ loud, resolve }) => {
      const met = loud ? began : ended;
      if (met) resolve(at);
      return !met;
    });
  }
}
