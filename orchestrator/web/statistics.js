/**
 * What the browser knows of the two received tracks, from `getStats`.
 *
 * @module statistics
 */

/**
 * @typedef {object} Figures Everything is null where the browser does not tell.
 * @property {number|null} fps decoded frames per second
 * @property {number|null} width
 * @property {number|null} height
 * @property {number|null} kbps of picture and sound
 * @property {number|null} audioBufferMs mean time a sound waited in the jitter buffer since the last reading
 * @property {number|null} videoBufferMs the same of a frame
 * @property {number|null} rttMs
 * @property {number|null} skewMs sound ahead of picture is positive
 * @property {number|null} lossPercent of audio packets since the last reading
 * @property {string|null} codec
 * @property {boolean} stalled no frame came since the last reading
 */

const MEDIAN_OF = 15;

/** @param {RTCStatsReport | undefined} report @param {string} type */
function entry(report, type) {
  const entries = [...(report?.values() ?? [])];
  return entries.find((stats) => stats.type === type && (type !== "candidate-pair" || stats.nominated));
}

/** @param {number[]} values */
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** Reads and differences the statistics; keep one per pair of tracks. */
export class Statistics {
  constructor() {
    /** @type {Record<string, any>} */
    this.last = {};
    /** @type {number[]} */
    this.skews = [];
  }

  /**
   * @param {{getRTCStatsReport(): Promise<RTCStatsReport|undefined>} | null} audioTrack
   * @param {{getRTCStatsReport(): Promise<RTCStatsReport|undefined>} | null} videoTrack
   * @returns {Promise<Figures>}
   */
  async read(audioTrack, videoTrack) {
    const [audioReport, videoReport] = await Promise.all([audioTrack?.getRTCStatsReport(), videoTrack?.getRTCStatsReport()]);
    const audio = entry(audioReport, "inbound-rtp");
    const video = entry(videoReport, "inbound-rtp");
    const before = this.last;
    this.last = { audio, video };
    const rtt = entry(videoReport ?? audioReport, "candidate-pair")?.currentRoundTripTime;
    return {
      fps: video?.framesPerSecond ?? null,
      width: video?.frameWidth ?? null,
      height: video?.frameHeight ?? null,
      kbps: sum(rate(audio, before.audio), rate(video, before.video)),
      audioBufferMs: bufferMs(audio, before.audio),
      videoBufferMs: bufferMs(video, before.video),
      rttMs: rtt === undefined ? null : rtt * 1000,
      skewMs: this.#skew(audio, video),
      lossPercent: loss(audio, before.audio),
      stalled: Boolean(video && before.video && video.framesDecoded === before.video.framesDecoded),
      codec: videoReport?.get(video?.codecId)?.mimeType?.replace("video/", "") ?? null,
    };
  }

  /**
   * Both estimates are NTP times of what is played at the moment of the report, on the sender's clock; their difference is
   * the skew as heard and seen. The two reports are not of the same moment: each is brought to its own timestamp. The
   * median of the last readings is told, since a single one moves by a video frame.
   * @param {any} audio @param {any} video
   */
  #skew(audio, video) {
    if (!audio?.estimatedPlayoutTimestamp || !video?.estimatedPlayoutTimestamp) return null;
    const skew = audio.estimatedPlayoutTimestamp - audio.timestamp - (video.estimatedPlayoutTimestamp - video.timestamp);
    this.skews = [...this.skews, skew].slice(-MEDIAN_OF);
    return median(this.skews);
  }
}

/** @param {number|null} a @param {number|null} b */
const sum = (a, b) => (a === null && b === null ? null : (a ?? 0) + (b ?? 0));

/** @param {any} now @param {any} before @returns {number|null} kilobits per second */
function rate(now, before) {
  if (!now || !before || now.timestamp <= before.timestamp) return null;
  return Math.max(0, (8 * (now.bytesReceived - before.bytesReceived)) / (now.timestamp - before.timestamp));
}

/** @param {any} now @param {any} before @returns {number|null} */
function bufferMs(now, before) {
  const emitted = (now?.jitterBufferEmittedCount ?? 0) - (before?.jitterBufferEmittedCount ?? 0);
  return emitted > 0 ? (1000 * (now.jitterBufferDelay - (before?.jitterBufferDelay ?? 0))) / emitted : null;
}

/** @param {any} now @param {any} before @returns {number|null} */
function loss(now, before) {
  const lost = (now?.packetsLost ?? 0) - (before?.packetsLost ?? 0);
  const received = (now?.packetsReceived ?? 0) - (before?.packetsReceived ?? 0);
  return received > 0 ? (100 * Math.max(0, lost)) / (received + Math.max(0, lost)) : null;
}
