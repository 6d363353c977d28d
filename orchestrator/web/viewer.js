/**
 * The avatar's room: joins it with a viewer token, or uses a room that the caller has joined, and plays the avatar's two tracks.
 * The audio may come from the orchestrator (participant `voice-SESSION`) while the avatar is away, or always. An avatar that leaves
 * the room may return; only the orchestrator knows whether its session is over.
 *
 * @module viewer
 */

import { AlphaCanvas } from "./alpha-canvas.js";
import { subscribeToCaptions } from "./captions.js";
import { Statistics } from "./statistics.js";
import { DisconnectReason, Room, RoomEvent, Track, setLogLevel } from "./vendor/livekit-client.esm.js";

/** @typedef {import("./vendor/livekit-client.esm.js").Participant} Participant */
/** @typedef {import("./vendor/livekit-client.esm.js").RemoteTrack} RemoteTrack */
/** @typedef {import("./vendor/livekit-client.esm.js").RoomEvents} RoomEvents */
/** @typedef {import("./vendor/livekit-client.esm.js").TrackPublication} TrackPublication */

const EMPTY_FRAME_PX = 2; // the last frame of a track that ends has 2×2 pixels

/** Why the room was left, as a sentence. @type {Record<number, string>} */
const REASONS = {
  [DisconnectReason.DUPLICATE_IDENTITY]: "This viewer joined again from another page.",
  [DisconnectReason.SERVER_SHUTDOWN]: "The LiveKit server shut down.",
  [DisconnectReason.PARTICIPANT_REMOVED]: "The viewer was removed from the room.",
  [DisconnectReason.ROOM_DELETED]: "The room was closed.",
  [DisconnectReason.JOIN_FAILURE]: "The room could not be joined. A firewall may block WebRTC.",
};

/** Earlier names of events, which are still dispatched. @type {Record<string, string>} */
const DEPRECATED_NAMES = { firstframe: "picture", audiotrack: "voice", audioblocked: "blocked", "avatar.state": "avatar", disconnected: "ended" };

/**
 * Events: `connection` (detail `connected`, `reconnecting`), `avatar.state` (detail: the participant's attribute of this name, or
 * null; `reconnecting` while the avatar is not in the room), `firstframe` (detail: its `performance.now()`), `audiotrack` (detail:
 * MediaStreamTrack), `audioblocked` (detail: whether the browser blocks playback), `caption` (detail: `Caption`), `disconnected`
 * (detail: a sentence), `alpha` (detail: whether the avatar is transparent, and drawn on the canvas from now on). Deprecated names of these: `picture`, `voice`, `blocked`, `avatar`, `ended`.
 */
export class Viewer extends EventTarget {
  /** @type {ResizeObserver | undefined} */
  #sizes;
  /** Draws a transparent avatar. @type {AlphaCanvas | null} */
  #alpha = null;

  /**
   * @param {object} options
   * @param {HTMLVideoElement} options.video
   * @param {HTMLAudioElement} options.audio
   * @param {HTMLCanvasElement} [options.canvas] shows a transparent avatar in the video's place; the video goes on unseen
   * @param {HTMLAudioElement} [options.standbyAudio] plays the orchestrator's audio
   * @param {HTMLAudioElement} [options.voice] deprecated: `standbyAudio`
   * @param {import("./vendor/livekit-client.esm.js").ConnectedRoom} [options.room] a connected room of the caller's, which stays connected when the viewer leaves
   */
  constructor({ video, canvas, audio, voice, standbyAudio = voice ?? new Audio(), room }) {
    super();
    setLogLevel("error");
    this.elements = { video, audio, standbyAudio };
    this.canvas = canvas ?? null;
    this.identity = "";
    this.standbyIdentity = "";
    /** The participant that speaks for the avatar in a conversation: the words are its transcriptions. */
    this.conversationIdentity = "";
    this.ended = false;
    this.statistics = new Statistics();
    /** @type {{audio: RemoteTrack | null, video: RemoteTrack | null, standbyAudio: RemoteTrack | null}} */
    this.tracks = { audio: null, video: null, standbyAudio: null };
    this.ownsRoom = room === undefined;
    /** @type {Room} */
    this.room = /** @type {Room | undefined} */ (room) ?? new Room({ adaptiveStream: false, dynacast: false, disconnectOnPageLeave: true });
    /** Each takes one listener off the room. @type {(() => void)[]} */
    this.unsubscribe = [];
  }

  /** Call it in a click: the browser then plays audio, now or as soon as there is some. */
  startAudio() {
    this.room.startAudio().catch(() => {});
    // An element without a source stays pending, and is unlocked because `play` was called in the click.
    for (const element of Object.values(this.elements)) element.play().catch(() => {});
  }

  /** @deprecated `startAudio` */
  allowSound() {
    this.startAudio();
  }

  /**
   * @param {{session_id: string, livekit_url: string, viewer_token: string, avatar_identity: string}} session
   * @throws when the room cannot be joined, or the caller's room is not connected
   */
  async join({ session_id, livekit_url, viewer_token, avatar_identity }) {
    this.identity = avatar_identity;
    this.standbyIdentity = `voice-${session_id}`;
    this.conversationIdentity = `conversation-${session_id}`;
    this.#listen();
    this.#awaitFirstFrame();
    if (this.ownsRoom) await this.room.connect(livekit_url, viewer_token, { autoSubscribe: true, maxRetries: 2 });
    else if (this.room.state !== "connected") throw new Error("the given room is not connected. Connect it first.");
    else this.#attachPresentTracks();
    this.#emit("connection", "connected");
    this.#emit("avatar.state", this.#avatarState());
    this.#showAlpha();
    if (!this.room.canPlaybackAudio) this.#emit("audioblocked", true);
  }

  /** Stops playback and leaves the room, unless it is the caller's. Dispatches no `disconnected`. Idempotent. */
  async leave() {
    this.ended = true;
    this.#sizes?.disconnect();
    this.#alpha?.stop();
    for (const unsubscribe of this.unsubscribe.splice(0)) unsubscribe();
    for (const kind of /** @type {const} */ (["audio", "video", "standbyAudio"])) {
      this.tracks[kind]?.detach(this.elements[kind]);
      this.tracks[kind] = null;
      this.elements[kind].srcObject = null;
    }
    if (this.ownsRoom) await this.room.disconnect();
  }

  /** What the browser measures of the two received tracks. @returns {Promise<import("./statistics.js").MediaStats>} */
  stats() {
    return this.statistics.read(this.tracks.audio, this.tracks.video);
  }

  /** @deprecated `stats` */
  figures() {
    return this.stats();
  }

  /** Whether the avatar is in the room now. */
  get present() {
    return this.room.remoteParticipants.has(this.identity);
  }

  #avatarState() {
    return this.room.remoteParticipants.get(this.identity)?.attributes["avatar.state"] ?? null;
  }

  /** A transparent avatar is one from its first frame on. */
  #showAlpha() {
    const below = this.room.remoteParticipants.get(this.identity)?.attributes["avatar.alpha"] === "below";
    if (!below || !this.canvas || this.#alpha) return;
    this.#alpha = new AlphaCanvas(this.elements.video, this.canvas);
    this.#alpha.start();
    this.#emit("alpha", true);
  }

  #listen() {
    const isAvatar = (/** @type {Participant} */ participant) => participant.identity === this.identity;
    this.#on(RoomEvent.TrackSubscribed, (track, publication, participant) => this.#attach(track, publication, participant));
    this.#on(RoomEvent.TrackUnsubscribed, (track) => this.#detach(track));
    this.#on(RoomEvent.TrackPublished, (_, participant) => this.#attachTracksOf(participant));
    this.#on(RoomEvent.ParticipantAttributesChanged, (_, participant) => {
      if (isAvatar(participant)) this.#emit("avatar.state", this.#avatarState());
    });
    this.#on(RoomEvent.ParticipantConnected, (participant) => {
      if (!isAvatar(participant)) return;
      this.#emit("avatar.state", this.#avatarState());
      this.#showAlpha();
    });
    this.#on(RoomEvent.ParticipantDisconnected, (participant) => {
      if (isAvatar(participant)) this.#emit("avatar.state", "reconnecting");
    });
    this.#on(RoomEvent.AudioPlaybackStatusChanged, () => this.#emit("audioblocked", !this.room.canPlaybackAudio));
    this.#on(RoomEvent.Reconnecting, () => this.#emit("connection", "reconnecting"));
    this.#on(RoomEvent.SignalReconnecting, () => this.#emit("connection", "reconnecting"));
    this.#on(RoomEvent.Reconnected, () => this.#emit("connection", "connected"));
    this.#on(RoomEvent.Disconnected, (reason) => this.#disconnected(REASONS[reason ?? 0] ?? "The connection to the room was lost."));
    this.unsubscribe.push(
      subscribeToCaptions(this.room, (identity, caption) => {
        if (identity === this.identity || identity === this.conversationIdentity) this.#emit("caption", caption);
      }),
    );
  }

  /**
   * @template {keyof RoomEvents} Name
   * @param {Name} event
   * @param {RoomEvents[Name]} listener
   */
  #on(event, listener) {
    this.room.on(event, listener);
    this.unsubscribe.push(() => this.room.off(event, listener));
  }

  /** A room that was joined before has published its tracks before. */
  #attachPresentTracks() {
    for (const participant of this.room.remoteParticipants.values()) this.#attachTracksOf(participant);
  }

  /** Attaches what is subscribed of the avatar's tracks, and subscribes to the others where the room does not do it by itself. @param {Participant} participant */
  #attachTracksOf(participant) {
    if (participant.identity !== this.identity && participant.identity !== this.standbyIdentity) return;
    for (const publication of participant.trackPublications.values()) {
      if (publication.track) this.#attach(publication.track, publication, participant);
      else if (!publication.isDesired) publication.setSubscribed(true);
    }
  }

  /** @param {RemoteTrack} track @param {TrackPublication} publication @param {Participant} participant */
  #attach(track, publication, participant) {
    const kind = this.#kindOf(track, participant);
    if (kind === null || this.tracks[kind] === track) return;
    this.tracks[kind] = track;
    track.attach(this.elements[kind]);
    if (kind === "video") this.#fit(publication);
    if (kind !== "video") this.#emit("audiotrack", track.mediaStreamTrack);
  }

  /** Of a video that is published in several sizes the one is asked for that fits the element, again whenever that changes. @param {TrackPublication} publication */
  #fit(publication) {
    this.#sizes?.disconnect();
    if (!publication.simulcasted) return;
    this.#sizes = new ResizeObserver(([entry]) => {
      const { width, height } = entry.contentRect;
      const pixels = { width: Math.round(width * devicePixelRatio), height: Math.round(height * devicePixelRatio) };
      if (pixels.width && pixels.height) publication.setVideoDimensions(pixels); // one that is hidden keeps what it has
    });
    this.#sizes.observe(this.elements.video);
  }

  /** @param {RemoteTrack} track @param {Participant} participant */
  #kindOf(track, participant) {
    if (participant.identity === this.standbyIdentity) return track.kind === Track.Kind.Audio ? "standbyAudio" : null;
    if (participant.identity !== this.identity) return null;
    return track.kind === Track.Kind.Video ? "video" : "audio";
  }

  /** @param {RemoteTrack} track */
  #detach(track) {
    for (const kind of /** @type {const} */ (["audio", "video", "standbyAudio"])) {
      if (this.tracks[kind] !== track) continue;
      if (kind === "video") this.#sizes?.disconnect();
      track.detach(this.elements[kind]);
      this.tracks[kind] = null;
    }
  }

  #awaitFirstFrame() {
    const { video } = this.elements;
    const onFrame = () => {
      if (this.ended) return;
      if (video.videoWidth > EMPTY_FRAME_PX) this.#emit("firstframe", performance.now());
      else video.requestVideoFrameCallback(onFrame);
    };
    if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(onFrame);
    else /** @type {HTMLVideoElement} */ (video).addEventListener("playing", onFrame, { once: true });
  }

  /** @param {string} sentence */
  #disconnected(sentence) {
    if (this.ended) return;
    this.ended = true;
    this.#emit("disconnected", sentence);
  }

  /** @param {string} type @param {unknown} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
    if (DEPRECATED_NAMES[type]) this.dispatchEvent(new CustomEvent(DEPRECATED_NAMES[type], { detail }));
  }
}
