/**
 * The form before the start: avatar, room, engine.
 *
 * @module chooser
 */

import { ApiError } from "./avatar-client.js";
import { $ } from "./elements.js";
import { t } from "./strings.js";

// By this file's address, so that both come from the same version of the page as it.
const POSTER = new URL("./poster.jpg", import.meta.url).href;
const PLACEHOLDER = new URL("./face.svg", import.meta.url).href;

export class Chooser {
  constructor() {
    const query = new URLSearchParams(location.search);
    $("room").value = query.get("room") ?? `avatar-${crypto.randomUUID().slice(0, 8)}`;
    if ([...$("engine").options].some((option) => option.value === query.get("engine"))) $("engine").value = query.get("engine");
    /** The last upload, which is not sent twice. @type {{file: File, avatar_id: string} | null} */
    this.uploaded = null;
    this.previewUrl = "";
    $("chooser").addEventListener("change", () => this.show());
    $("chooser").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      $("start-talk").click();
    });
    this.show();
  }

  /** @returns {"demo" | "url" | "upload"} */
  get source() {
    return $("chooser").elements.source.value;
  }

  /** Shows the fields of the chosen source, and a preview of it where there is one. */
  show() {
    const source = this.source;
    $("source-url").hidden = source !== "url";
    $("source-upload").hidden = source !== "upload";
    const file = source === "upload" ? $("file").files[0] : undefined;
    URL.revokeObjectURL(this.previewUrl);
    this.previewUrl = file ? URL.createObjectURL(file) : "";
    const isClip = Boolean(file?.type.startsWith("video/"));
    const isPicture = Boolean(file?.type.startsWith("image/"));
    $("poster").hidden = isClip;
    $("poster").src = isPicture ? this.previewUrl : source === "demo" ? POSTER : PLACEHOLDER;
    $("poster-clip").hidden = !isClip;
    if (isClip) $("poster-clip").src = this.previewUrl;
    else $("poster-clip").removeAttribute("src");
    if (isClip && !matchMedia("(prefers-reduced-motion: reduce)").matches) $("poster-clip").play().catch(() => {});
  }

  /**
   * The start request that the form describes. Uploads the chosen file first.
   * @param {import("./avatar-client.js").AvatarClient} client
   * @param {(status: string) => void} showProgress
   * @returns {Promise<import("./avatar-client.js").StartRequest>}
   */
  async request(client, showProgress) {
    const request = { room: $("room").value.trim() || "avatar", ...($("engine").value && { engine: $("engine").value }) };
    if (this.source === "demo") return { ...request, avatar_id: "demo" };
    if (this.source === "upload") return { ...request, avatar_id: await this.#upload(client, showProgress) };
    const url = $("url").value.trim();
    if (!/^https?:\/\/\S+$/.test(url)) {
      throw new ApiError(t("chooser.no_address"), { code: "avatar_missing", field: "url" });
    }
    const isZip = new URL(url).pathname.toLowerCase().endsWith(".zip");
    return { ...request, ...(isZip ? { frames_zip_url: url } : { idle_video_url: url }) };
  }

  /**
   * @param {import("./avatar-client.js").AvatarClient} client
   * @param {(status: string) => void} showProgress
   */
  async #upload(client, showProgress) {
    const file = $("file").files[0];
    if (!file) throw new ApiError(t("chooser.no_file"), { code: "avatar_missing", field: "file" });
    if (this.uploaded && this.uploaded.file === file) return this.uploaded.avatar_id;
    const bar = $("upload-progress");
    bar.hidden = false;
    try {
      const { avatar_id } = await client.upload(file, (fraction) => {
        bar.value = fraction;
        const { name } = file;
        showProgress(fraction < 1 ? t("chooser.uploading", { name, percent: Math.round(100 * fraction) }) : t("chooser.uploaded", { name }));
      });
      this.uploaded = { file, avatar_id };
      return avatar_id;
    } finally {
      bar.hidden = true;
      bar.value = 0;
    }
  }
}
