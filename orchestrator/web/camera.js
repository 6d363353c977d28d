/**
 * One photo by the camera. The camera is on between `open` and `close`, and its light with it.
 *
 * @module camera
 */

import { ApiError } from "./avatar-client.js";
import { t } from "./strings.js";

const WIDE = { facingMode: "user", width: { ideal: 1280 }, height: { ideal: 960 } };
const QUALITY = 0.92;
/** @typedef {"forbidden" | "missing" | "busy" | "insecure" | "failed"} Reason */
/** By the error of `getUserMedia`. @type {Record<string, Reason>} */
const CODES = { NotAllowedError: "forbidden", NotFoundError: "missing", NotReadableError: "busy" };

export class Camera {
  /** @param {HTMLVideoElement} video shows what the camera sees */
  constructor(video) {
    this.video = video;
    /** @type {MediaStream | null} */
    this.stream = null;
    /** Raised by every `open` and `close`: a camera that an earlier `open` still brings is given back. */
    this.generation = 0;
  }

  /** Turns it on. @throws {ApiError} `camera_forbidden`, `camera_missing`, `camera_busy`, `camera_insecure`, `camera_failed` */
  async open() {
    this.close();
    const { generation } = this;
    if (!navigator.mediaDevices) throw problem("insecure");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: WIDE });
    } catch (error) {
      throw problem(CODES[/** @type {DOMException} */ (error).name] ?? "failed");
    }
    if (generation !== this.generation) return stop(stream);
    this.stream = stream;
    this.video.srcObject = stream;
    await this.video.play().catch(() => {}); // it was closed meanwhile
  }

  /** What it sees now, as JPEG. @returns {Promise<File>} @throws {ApiError} `camera_failed` */
  async photo() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d")?.drawImage(this.video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
    if (!this.stream || !width || !blob) throw problem("failed");
    return new File([blob], `${t("add.photo_name")}.jpg`, { type: "image/jpeg" });
  }

  /** Turns it off. Idempotent. */
  close() {
    this.generation += 1;
    if (this.stream) stop(this.stream);
    this.stream = null;
    this.video.srcObject = null;
  }
}

/** @param {MediaStream} stream */
function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** @param {Reason} reason */
const problem = (reason) => new ApiError(t(`camera.${reason}`), { code: `camera_${reason}` });
