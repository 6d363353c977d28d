/** What this client uses of livekit-client, for type checkers: the vendored file is minified and has no types of its own. */

export interface TrackPublication {
  readonly track?: RemoteTrack;
  readonly isDesired: boolean;
  readonly simulcasted?: boolean;
  setSubscribed(subscribed: boolean): void;
  setVideoDimensions(dimensions: { width: number; height: number }): void;
}

export interface Participant {
  readonly identity: string;
  readonly kind: number;
  readonly attributes: Readonly<Record<string, string>>;
  readonly trackPublications: ReadonlyMap<string, TrackPublication>;
}

export interface LocalPublication {
  mute(): Promise<unknown>;
  unmute(): Promise<unknown>;
}

export class LocalAudioTrack {
  constructor(mediaTrack: MediaStreamTrack, constraints?: MediaTrackConstraints, userProvidedTrack?: boolean);
  mute(): Promise<unknown>;
  unmute(): Promise<unknown>;
}

export interface LocalParticipant {
  readonly identity: string;
  publishTrack(track: LocalAudioTrack, options: { source: string; name: string }): Promise<LocalPublication>;
  unpublishTrack(track: MediaStreamTrack): Promise<unknown>;
  sendText(text: string, options: { topic: string }): Promise<{ readonly id: string }>;
}

export interface RemoteTrack {
  readonly kind: string;
  readonly mediaStreamTrack: MediaStreamTrack;
  attach(element: HTMLMediaElement): HTMLMediaElement;
  detach(element: HTMLMediaElement): HTMLMediaElement;
  getRTCStatsReport(): Promise<RTCStatsReport | undefined>;
}

export interface TextStreamReader extends AsyncIterable<string> {
  readonly info: { readonly id: string; readonly attributes?: Readonly<Record<string, string>> };
}

export interface RoomEvents {
  trackSubscribed: (track: RemoteTrack, publication: TrackPublication, participant: Participant) => void;
  trackUnsubscribed: (track: RemoteTrack, publication: unknown, participant: Participant) => void;
  trackPublished: (publication: unknown, participant: Participant) => void;
  participantAttributesChanged: (changed: Record<string, string>, participant: Participant) => void;
  participantConnected: (participant: Participant) => void;
  participantDisconnected: (participant: Participant) => void;
  audioPlaybackChanged: (playing: boolean) => void;
  connected: () => void;
  reconnecting: () => void;
  signalReconnecting: () => void;
  reconnected: () => void;
  disconnected: (reason?: number) => void;
}

export class Room {
  constructor(options?: { adaptiveStream?: boolean; dynacast?: boolean; disconnectOnPageLeave?: boolean });
  readonly state: string;
  readonly remoteParticipants: ReadonlyMap<string, Participant>;
  readonly localParticipant: LocalParticipant;
  readonly canPlaybackAudio: boolean;
  connect(url: string, token: string, options?: { autoSubscribe?: boolean; maxRetries?: number }): Promise<void>;
  disconnect(): Promise<void>;
  startAudio(): Promise<void>;
  on<Name extends keyof RoomEvents>(event: Name, listener: RoomEvents[Name]): this;
  off<Name extends keyof RoomEvents>(event: Name, listener: RoomEvents[Name]): this;
  registerTextStreamHandler(topic: string, handler: (reader: TextStreamReader, participant: { identity: string }) => void): void;
  unregisterTextStreamHandler(topic: string): void;
}

/** A `Room` of any copy of livekit-client, such as the one that a page has from npm. */
export interface ConnectedRoom {
  readonly state: string;
  readonly remoteParticipants: ReadonlyMap<string, { readonly identity: string }>;
  on(event: any, listener: (...details: any[]) => void): unknown;
  off(event: any, listener: (...details: any[]) => void): unknown;
}

export const RoomEvent: {
  readonly TrackSubscribed: "trackSubscribed";
  readonly TrackUnsubscribed: "trackUnsubscribed";
  readonly TrackPublished: "trackPublished";
  readonly ParticipantAttributesChanged: "participantAttributesChanged";
  readonly ParticipantConnected: "participantConnected";
  readonly ParticipantDisconnected: "participantDisconnected";
  readonly AudioPlaybackStatusChanged: "audioPlaybackChanged";
  readonly Reconnecting: "reconnecting";
  readonly SignalReconnecting: "signalReconnecting";
  readonly Reconnected: "reconnected";
  readonly Disconnected: "disconnected";
};

export const DisconnectReason: {
  readonly DUPLICATE_IDENTITY: number;
  readonly SERVER_SHUTDOWN: number;
  readonly PARTICIPANT_REMOVED: number;
  readonly ROOM_DELETED: number;
  readonly JOIN_FAILURE: number;
};

export const Track: { readonly Kind: { readonly Audio: "audio"; readonly Video: "video" } };

export function setLogLevel(level: string): void;
