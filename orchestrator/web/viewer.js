/**
 * The avatar's room: joins with a viewer token, shows the avatar's two tracks and tells what becomes of them. Its sound may come
 * from the orchestrator (`voice-…`), while the avatar is away or always. An avatar that leaves may return; whether the session
 * is over, the orchestrator knows.
 *
 * @module viewer
 */

import { DisconnectReason, Room, RoomEvent, Track, setLogLevel } from "./vendor/livekit-client.esm.js";
import { Statistics } from "./statistics.js";

const EMPTY_PICTURE_PX = 2; // a track that ends leaves a last frame of 2×2

/** Why the room was left, in words. @type {Record<number, string>} */
const REASONS = {
  [DisconnectReason.DUPLICATE_IDENTITY]: "This viewer joined again from another page.",
  [DisconnectReason.SERVER_SHUTDOWN]: "The LiveKit server shut down.",
  [DisconnectReason.PARTICIPANT_REMOVED]: "The viewer was removed from the room.",
  [DisconnectReason.ROOM_DELETED]: "The room was closed.",
  [DisconnectReason.JOIN_FAILURE]: "The room could not be joined. A firewall may block WebRTC.",
};

/**
 * Events: `connection` (detail `connected`, `reconnecting`), `avatar` (detail: the `avatar.state` attribute or null),
 * `picture` at the first frame, `voice` (detail: MediaStreamTrack), `blocked` (detail: whether the browser holds the sound
 * back), `ended` (detail: a sentence).
 */
export class Viewer extends EventTarget {
  /** @param {{video: HTMLVideoElement, audio: HTMLAudioElement, voice?: HTMLAudioElement}} elements */
  constructor({ video, audio, voice = new Audio() }) {
    super();
    setLogLevel("error");
    this.elements = { video, audio, voice };
    this.identity = "";
    this.voiceIdentity = "";
    this.ended = false;
    this.statistics = new Statistics();
    /** @type {{audio: any, video: any}} */
    this.tracks = { audio: null, video: null };
    this.room = new Room({ adaptiveStream: false, dynacast: false, disconnectOnPageLeave: true });
    this.#listen();
  }

  /** Call inside a click: lets the browser play sound, now or once there is some. */
  allowSound() {
    this.room.startAudio().catch(() => {});
    // Elements that nothing is attached to yet stay pending, and are unlocked by having been asked in the click.
    for (const element of Object.values(this.elements)) element.play().catch(() => {});
  }

  /**
   * @param {{session_id: string, livekit_url: string, viewer_token: string, avatar_identity: string}} session
   * @throws when the room cannot be joined
   */
  async join({ session_id, livekit_url, viewer_token, avatar_identity }) {
    this.identity = avatar_identity;
    this.voiceIdentity = `voice-${session_id}`;
    this.#firstPicture();
    await this.room.connect(livekit_url, viewer_token, { autoSubscribe: true, maxRetries: 2 });
    this.#emit("connection", "connected");
    this.#emit("avatar", this.#avatarState());
    if (!this.room.canPlaybackAudio) this.#emit("blocked", true);
  }

  /** Leaves the room; `ended` is not told. Idempotent. */
  async leave() {
    this.ended = true;
    await this.room.disconnect();
    this.elements.video.srcObject = null;
    this.elements.audio.srcObject = null;
    this.elements.voice.srcObject = null;
  }

  /** @returns {Promise<import("./statistics.js").Figures>} */
  figures() {
    return this.statistics.read(this.tracks.audio, this.tracks.video);
  }

  /** Whether the avatar is in the room now. */
  get present() {
    return this.room.remoteParticipants.has(this.identity);
  }

  #avatarState() {
    return this.room.remoteParticipants.get(this.identity)?.attributes["avatar.state"] ?? null;
  }

  #listen() {
    const mine = (/** @type {any} */ participant) => participant.identity === this.identity;
    this.room
      .on(RoomEvent.TrackSubscribed, (track, _, who) => {
        if (mine(who)) this.#attach(track);
        else if (who.identity === this.voiceIdentity) this.#attachVoice(track);
      })
      .on(RoomEvent.TrackUnsubscribed, (track) => track.detach())
      .on(RoomEvent.ParticipantAttributesChanged, (_, who) => mine(who) && this.#emit("avatar", this.#avatarState()))
      .on(RoomEvent.ParticipantConnected, (who) => mine(who) && this.#emit("avatar", this.#avatarState()))
      .on(RoomEvent.ParticipantDisconnected, (who) => mine(who) && this.#emit("avatar", "reconnecting"))
      .on(RoomEvent.AudioPlaybackStatusChanged, () => this.#emit("blocked", !this.room.canPlaybackAudio))
      .on(RoomEvent.Reconnecting, () => this.#emit("connection", "reconnecting"))
      .on(RoomEvent.SignalReconnecting, () => this.#emit("connection", "reconnecting"))
      .on(RoomEvent.Reconnected, () => this.#emit("connection", "connected"))
      .on(RoomEvent.Disconnected, (reason) => this.#end(REASONS[reason ?? 0] ?? "The connection to the room was lost."));
  }

  /** @param {any} track */
  #attach(track) {
    if (track.kind === Track.Kind.Video) {
      this.tracks.video = track;
      track.attach(this.elements.video);
    } else {
      this.tracks.audio = track;
      track.attach(this.elements.audio);
      this.#emit("voice", track.mediaStreamTrack);
    }
  }

  /** @param {any} track the orchestrator's own, which stands in for the avatar's or takes its place */
  #attachVoice(track) {
    track.attach(this.elements.voice);
    this.#emit("voice", track.mediaStreamTrack);
  }

  #firstPicture() {
    const { video } = this.elements;
    const seen = () => {
      if (this.ended) return;
      if (video.videoWidth > EMPTY_PICTURE_PX) this.#emit("picture", performance.now());
      else video.requestVideoFrameCallback(seen);
    };
    if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(seen);
    else /** @type {HTMLVideoElement} */ (video).addEventListener("playing", seen, { once: true });
  }

  /** @param {string} sentence */
  #end(sentence) {
    if (this.ended) return;
    this.ended = true;
    this.#emit("ended", sentence);
  }

  /** @param {string} type @param {unknown} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
