/**
 * Figures of the two received tracks, from WebRTC's `getStats`. The browser has no event for them: callers sample.
 *
 * @module statistics
 */

/**
 * @typedef {object} MediaStats A value is null where the browser does not report it.
 * @property {number|null} fps decoded frames per second
 * @property {number|null} width
 * @property {number|null} height
 * @property {number|null} kbps of video and audio
 * @property {number|null} audioBufferMs mean time that audio spent in the jitter buffer since the last reading
 * @property {number|null} videoBufferMs the same of video frames
 * @property {number|null} rttMs
 * @property {number|null} skewMs positive when audio is ahead of video
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
   * @returns {Promise<MediaStats>}
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
   * Each estimate is the sender's NTP time of the media that are played at the moment of the report; their difference is the skew
   * as heard and seen. The two reports have different timestamps, which are subtracted. A single reading varies by a video frame, so
   * the median of the last readings is returned.
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
