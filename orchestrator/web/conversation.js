/**
 * A session's conversation as its room shows it: the words of both sides, and what the avatar does. Words come as LiveKit
 * transcriptions, the state is the attribute `lk.agent.state` of the participant `conversation-SESSION`. Marks of interruption, and
 * texts that others typed, come with the session's events, which need a key.
 *
 * @module conversation
 */

import { subscribeToCaptions } from "./captions.js";

/** @typedef {import("./vendor/livekit-client.esm.js").Room} Room */
/** @typedef {import("./vendor/livekit-client.esm.js").Participant} Participant */

/**
 * @typedef {"starting" | "listening" | "thinking" | "speaking" | "away"} ConversationState `starting`: the conversation's part has not
 *     joined the room yet. `away`: it was there and is lost; the orchestrator starts it again, and texts wait for it
 *
 * @typedef {object} Message One line of the conversation, as it is now.
 * @property {string} id
 * @property {"user" | "assistant"} role
 * @property {string} text everything of it so far; of an interrupted reply what was heard
 * @property {boolean} final no more words come
 * @property {boolean} interrupted
 * @property {boolean} typed it was written, not spoken
 */

const STATE = "lk.agent.state";
/** Values of livekit-agents' attribute that have another name here. @type {Record<string, ConversationState>} */
const STATES = { initializing: "starting", idle: "listening", listening: "listening", thinking: "thinking", speaking: "speaking" };
const KIND_AGENT = 4;
/** Lines kept; past it the oldest goes, as in `GET /session/{id}/messages`. */
const MESSAGES = 1000;

/** Events: `message` (detail: `Message`, a new one or one that changed), `state` (detail: `ConversationState`). */
export class Conversation extends EventTarget {
  /** @type {(() => void)[]} */
  #unsubscribe = [];
  /** @type {Room | null} */
  #room = null;
  #avatar;
  #wasThere = false;
  /** The orchestrator has reported a loss that the room does not show yet: a killed participant stays in it for seconds. */
  #lost = false;
  /** Ids of replies whose last word is known. @type {Set<string>} */
  #settled = new Set();

  /** @param {{session_id: string, avatar_identity: string}} session */
  constructor({ session_id, avatar_identity }) {
    super();
    /** The participant that listens and answers. */
    this.identity = `conversation-${session_id}`;
    this.#avatar = avatar_identity;
    /** Oldest first. @type {Message[]} */
    this.messages = [];
    /** @type {ConversationState} */
    this.state = "starting";
  }

  /** Follows the conversation in this room, which may be connected later. @param {Room} room */
  attach(room) {
    this.#room = room;
    const update = (/** @type {Participant} */ participant) => {
      if (participant.identity !== this.identity) return;
      this.#lost = false;
      this.#showState();
    };
    /** @type {<Name extends keyof import("./vendor/livekit-client.esm.js").RoomEvents>(name: Name, listener: import("./vendor/livekit-client.esm.js").RoomEvents[Name]) => void} */
    const on = (name, listener) => {
      room.on(name, listener);
      this.#unsubscribe.push(() => room.off(name, listener));
    };
    on("participantAttributesChanged", (_, participant) => update(participant));
    on("participantConnected", update);
    on("participantDisconnected", update);
    on("connected", () => this.#showState());
    on("reconnected", () => this.#showState());
    this.#unsubscribe.push(subscribeToCaptions(room, (identity, caption) => this.#heard(identity, caption)));
    this.#showState();
  }

  /** Follows it no more; what was said stays readable. Idempotent. */
  close() {
    for (const unsubscribe of this.#unsubscribe.splice(0)) unsubscribe();
    this.#room = null;
  }

  /** Takes a text of the user's that was sent. @param {string} id @param {string} text */
  typed(id, text) {
    if (!this.#find(id)) this.#add({ id, role: "user", text, final: true, interrupted: false, typed: true });
  }

  /** Takes an event of the session's event stream. @param {string} type @param {any} data */
  handle(type, data) {
    if (type === "user.transcript" && data.message_id) this.typed(data.message_id, data.text);
    else if (type === "conversation.state") {
      this.#lost = data.state === "away";
      this.#showState();
    } else if (type === "reply.finished") this.#settle(data.text.trim(), data.interrupted);
  }

  /** @param {string} identity @param {import("./captions.js").Caption} caption */
  #heard(identity, { id, text, final }) {
    const role = identity === this.identity || identity === this.#avatar ? "assistant" : this.#isUser(identity) ? "user" : null;
    const words = text.trim();
    if (role === null || this.#settled.has(id) || !words) return;
    const known = this.#find(id);
    if (known) this.#change(known, { text: words, final });
    else if (role === "assistant" && this.#adopts(id, words)) return;
    else this.#add({ id, role, text: words, final, interrupted: false, typed: false });
  }

  /** The words of a reply whose end was reported before its first word came. @param {string} id @param {string} words */
  #adopts(id, words) {
    const last = this.messages.filter(({ role }) => role === "assistant").at(-1);
    if (!last?.id.startsWith("reply-") || !last.text.startsWith(words)) return false;
    last.id = id;
    this.#settled.add(id);
    return true;
  }

  /** A reply is over. @param {string} text that was heard of it @param {boolean} interrupted */
  #settle(text, interrupted) {
    const replies = this.messages.filter(({ id, role }) => role === "assistant" && !this.#settled.has(id));
    // Of a reply before this one the end may have been lost with the conversation's process.
    const matches = replies.find((reply) => text && (text.startsWith(reply.text) || reply.text.startsWith(text)));
    const open = matches ?? (text ? replies[0] : replies.find(({ final }) => final));
    if (open) {
      this.#settled.add(open.id);
      this.#change(open, { text: text || open.text, final: true, interrupted });
    } else if (text) {
      const id = `reply-${this.messages.length}`;
      this.#settled.add(id);
      this.#add({ id, role: "assistant", text, final: true, interrupted, typed: false });
    }
  }

  /** @param {string} identity */
  #isUser(identity) {
    if (identity === this.#room?.localParticipant.identity) return true;
    const participant = this.#room?.remoteParticipants.get(identity);
    return participant !== undefined && participant.kind !== KIND_AGENT;
  }

  /** @param {string} id */
  #find(id) {
    return this.messages.find((message) => message.id === id);
  }

  /** @param {Message} message */
  #add(message) {
    this.messages.push(message);
    if (this.messages.length > MESSAGES) this.#settled.delete(this.messages.shift()?.id ?? "");
    this.#emit("message", { ...message });
  }

  /** @param {Message} message @param {Partial<Message>} change */
  #change(message, change) {
    const before = JSON.stringify(message);
    Object.assign(message, change);
    if (JSON.stringify(message) !== before) this.#emit("message", { ...message });
  }

  #showState() {
    const participant = this.#room?.remoteParticipants.get(this.identity);
    if (participant || this.#lost) this.#wasThere = true;
    const state = participant && !this.#lost ? (STATES[participant.attributes[STATE]] ?? "starting") : this.#wasThere ? "away" : "starting";
    if (state === this.state) return;
    this.state = state;
    this.#emit("state", state);
  }

  /** @param {string} type @param {unknown} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
