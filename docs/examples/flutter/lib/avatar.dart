/// One avatar in an app: starts the session, joins the room, shows it, makes it speak, and tells what becomes of it.
library;

import 'dart:async';

import 'package:flutter/foundation.dart';
import 'package:flutter_webrtc/flutter_webrtc.dart' show RTCVideoRenderer;
import 'package:livekit_client/livekit_client.dart';

import 'audio_link.dart';
import 'orchestrator.dart';

enum AvatarState { off, starting, ready, speaking, recovering, draining, stopped, failed }

class Avatar extends ChangeNotifier {
  Avatar(this._orchestrator);

  final Orchestrator _orchestrator;
  final renderer = RTCVideoRenderer();

  AvatarState state = AvatarState.off;

  /// Whether a picture of the avatar is there; until then, and while it is away, show the idle picture.
  bool seen = false;

  /// The way media take: `livekit`, `whip`, `rtmp`, `none`.
  String publisher = 'livekit';

  /// What went wrong last, for people.
  String? problem;

  /// PCM in; null while there is no session.
  AudioLink? link;

  StartedSession? _session;
  Room? _room;
  EventsListener<RoomEvent>? _events;
  bool _rendererReady = false;
  bool _disposed = false;

  static const _emptyPicture = 16; // a track that ends leaves a last picture of 2 × 2

  Future<void> start({required String room, String? avatarId, String? idleVideoUrl, String? framesZipUrl, String? rtmpUrl}) async {
    _become(AvatarState.starting);
    problem = null;
    try {
      if (!_rendererReady) {
        await renderer.initialize();
        renderer.addListener(_look);
        _rendererReady = true;
      }
      final session = await _orchestrator.start(
        room: room,
        avatarId: avatarId,
        idleVideoUrl: idleVideoUrl,
        framesZipUrl: framesZipUrl,
        rtmpUrl: rtmpUrl,
      );
      _session = session;
      await _join(session);
      final audio = AudioLink(session.audioUrl, onMessage: _hear, onOver: _linkOver);
      link = audio;
      unawaited(audio.open());
      _become(AvatarState.ready);
    } catch (error) {
      problem = '$error';
      await _leave(AvatarState.failed);
      rethrow;
    }
  }

  Future<void> speak(String text) => _orchestrator.speak(_session!.sessionId, text);

  Future<double> interrupt() => _orchestrator.interrupt(_session!.sessionId);

  /// Ends the session for everybody.
  Future<void> stop() => _leave(AvatarState.stopped);

  Future<void> _join(StartedSession session) async {
    // No adaptive stream: the avatar has one layer, and the SFU would pause it while the widget is not laid out.
    final room = Room(roomOptions: const RoomOptions(adaptiveStream: false, dynacast: false));
    _room = room;
    _events = room.createListener()
      ..on<TrackSubscribedEvent>((event) {
        final track = event.track;
        if (event.participant.identity == session.avatarIdentity && track is VideoTrack) {
          renderer.srcObject = track.mediaStream;
        }
      })
      ..on<ParticipantDisconnectedEvent>((event) {
        if (event.participant.identity == session.avatarIdentity) _see(false); // it may come back
      })
      ..on<RoomDisconnectedEvent>((_) {
        problem = 'The connection to the room was lost.';
        unawaited(_leave(AvatarState.failed));
      });
    await room.connect(session.livekitUrl, session.viewerToken);
  }

  /// Events of `/audio`, as docs/protocol.md has them.
  void _hear(Map<String, dynamic> message) {
    switch (message['type']) {
      case 'session.state':
        _become(_states[message['state']] ?? state);
        if (message['reason'] == 'moved') debugPrint('the session goes on at another agent');
      case 'playback.started':
        _become(AvatarState.speaking);
      case 'playback.finished':
        if (state == AvatarState.speaking) _become(AvatarState.ready);
      case 'publisher.changed':
        publisher = message['publisher'] as String;
        _tell();
      case 'warning' || 'error':
        problem = '${message['message']} (${message['code']})';
        _tell();
    }
  }

  static const _states = {
    'ready': AvatarState.ready,
    'recovering': AvatarState.recovering,
    'draining': AvatarState.draining,
    'stopped': AvatarState.stopped,
    'failed': AvatarState.failed,
  };

  /// The link is closed for good: the session has ended, or another sender took over, or the network is away for too long.
  Future<void> _linkOver(int? closeCode) async {
    final session = _session;
    if (session == null) return;
    var told = closeCode == 1001 ? 'stopped' : 'failed';
    try {
      told = await _orchestrator.state(session.sessionId);
    } catch (_) {
      // the close code is all that is known
    }
    if (told == 'stopped' || told == 'failed') await _leave(_states[told]!);
  }

  Future<void> _leave(AvatarState end) async {
    final session = _session, room = _room;
    _session = null;
    _room = null;
    await _events?.dispose();
    await link?.close();
    link = null;
    if (_rendererReady) renderer.srcObject = null;
    _see(false);
    _become(end);
    await room?.disconnect();
    if (session != null) {
      try {
        await _orchestrator.stop(session.sessionId);
      } catch (error) {
        debugPrint('the session will end by itself: $error');
      }
    }
  }

  void _look() => _see(renderer.srcObject != null && renderer.videoWidth > _emptyPicture);

  void _see(bool now) {
    if (seen == now) return;
    seen = now;
    _tell();
  }

  void _become(AvatarState next) {
    if (state == next) return;
    state = next;
    _tell();
  }

  void _tell() {
    if (!_disposed) notifyListeners();
  }

  @override
  void dispose() {
    _disposed = true;
    renderer.removeListener(_look);
    unawaited(_leave(AvatarState.stopped).whenComplete(() async {
      if (_rendererReady) await renderer.dispose();
      _orchestrator.close();
    }));
    super.dispose();
  }
}
