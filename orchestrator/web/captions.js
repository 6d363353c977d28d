/**
 * Captions: the text streams that agents send into a room under LiveKit's topic `lk.transcription`, one stream a line.
 *
 * @module captions
 */

/** @typedef {import("./vendor/livekit-client.esm.js").Room} Room */

/**
 * @typedef {object} Caption One line as it is now; it grows with the words that are heard.
 * @property {string} id of the line; a line that another agent continues has a new one (`…+SECONDS`)
 * @property {number | null} segment the segment that the line belongs to
 * @property {string} text everything of the line so far
 * @property {boolean} final the line does not grow any more
 *
 * @typedef {(identity: string, caption: Caption) => void} CaptionListener
 */

const TOPIC = "lk.transcription";
const FINAL = "lk.transcription_final";
const SEGMENT = /\.(\d+)(?:\+[\d.]+)?$/;

/**
 * Listeners of each room: a room takes one handler for a topic, and several avatars may share a room.
 * @type {WeakMap<Room, Set<CaptionListener>>}
 */
const listenersOf = new WeakMap();

/**
 * Calls the listener with every caption of every participant of a room. Where the room's owner has registered a handler for the
 * topic already, no captions arrive here.
 * @param {Room} room
 * @param {CaptionListener} listener
 * @returns {() => void} stops it
 */
export function subscribeToCaptions(room, listener) {
  let listeners = listenersOf.get(room);
  if (!listeners) {
    listeners = new Set();
    const all = listeners;
    try {
      room.registerTextStreamHandler(TOPIC, (reader, { identity }) => void readLine(reader, (caption) => all.forEach((each) => each(identity, caption))));
    } catch {
      return () => {}; // the topic has a handler of the room's owner
    }
    listenersOf.set(room, listeners);
  }
  const present = listeners;
  present.add(listener);
  return () => {
    present.delete(listener);
    if (present.size || listenersOf.get(room) !== present) return;
    listenersOf.delete(room);
    room.unregisterTextStreamHandler(TOPIC);
  };
}

/**
 * @param {import("./vendor/livekit-client.esm.js").TextStreamReader} reader
 * @param {(caption: Caption) => void} emit
 */
async function readLine(reader, emit) {
  const id = reader.info.attributes?.["lk.segment_id"] ?? reader.info.id;
  const number = SEGMENT.exec(id)?.[1];
  const segment = number === undefined ? null : Number(number);
  let text = "";
  try {
    for await (const words of reader) {
      text += words;
      emit({ id, segment, text, final: false });
    }
  } catch {
    emit({ id, segment, text, final: true }); // the sender left the room within the line: what came of it stays
    return;
  }
  // What a user says comes again and again, each time as a stream of its own, until it is final.
  emit({ id, segment, text, final: reader.info.attributes?.[FINAL] !== "false" });
}
