/// One avatar in an app: starts the session, joins the room, renders the avatar, makes it speak, and reports its state.
library;

import 'dart:async';

import 'package:flutter/foundation.dart';
import 'package:flutter_webrtc/flutter_webrtc.dart' show RTCVideoRenderer;
import 'package:livekit_client/livekit_client.dart';

import 'audio_link.dart';
import 'conversation.dart';
import 'orchestrator.dart';

enum AvatarState { off, starting, ready, speaking, recovering, draining, stopped, failed }

class Avatar extends ChangeNotifier {
  Avatar(this._orchestrator);

  final Orchestrator _orchestrator;
  final renderer = RTCVideoRenderer();

  AvatarState state = AvatarState.off;

  /// Whether a frame of the avatar is rendered; before that, and while the avatar is away, show the poster.
  bool hasVideo = false;

  /// The transport of the avatar's media: `livekit`, `whip`, `rtmp`, `none`.
  String publisher = 'livekit';

  /// The last problem, as a sentence for the user.
  String? problem;

  /// Takes PCM; null without a session.
  AudioLink? link;

  StartedSession? _session;
  Room? _room;
  EventsListener<RoomEvent>? _events;
  bool _rendererReady = false;
  bool _disposed = false;

  static const _emptyFramePx = 16; // the last frame of a track that ends has 2 × 2 pixels

  /// With a [conversation] the avatar listens and answers: then `speak` is refused, and texts go to [Conversation.send].
  Future<void> start({
    required String room,
    String? avatarId,
    String? idleVideoUrl,
    String? framesZipUrl,
    String? rtmpUrl,
    Conversation? conversation,
  }) async {
    _setState(AvatarState.starting);
    problem = null;
    try {
      if (!_rendererReady) {
        await renderer.initialize();
        renderer.addListener(_updateVideo);
        _rendererReady = true;
      }
      final session = await _orchestrator.start(
        room: room,
        avatarId: avatarId,
        idleVideoUrl: idleVideoUrl,
        framesZipUrl: framesZipUrl,
        rtmpUrl: rtmpUrl,
        conversation: conversation == null ? null : Conversation.request,
      );
      _session = session;
      await _join(session, conversation);
      final audio = AudioLink(session.audioUrl, onMessage: _onMessage, onClosed: _onLinkClosed);
      link = audio;
      unawaited(audio.open());
      _setState(AvatarState.ready);
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

  Future<void> _join(StartedSession session, Conversation? conversation) async {
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
        if (event.participant.identity == session.avatarIdentity) _setHasVideo(false); // it may come back
      })
      ..on<RoomDisconnectedEvent>((_) {
        problem = 'The connection to the room was lost.';
        unawaited(_leave(AvatarState.failed));
      });
    conversation?.follow(room);
    await room.connect(session.livekitUrl, session.viewerToken);
    await conversation?.listen(true);
  }

  /// Events of `/audio`, see docs/protocol.md.
  void _onMessage(Map<String, dynamic> message) {
    switch (message['type']) {
      case 'session.state':
        _setState(_states[message['state']] ?? state);
        if (message['reason'] == 'moved') debugPrint('the session has moved to another agent');
      case 'playback.started':
        _setState(AvatarState.speaking);
      case 'playback.finished':
        if (state == AvatarState.speaking) _setState(AvatarState.ready);
      case 'publisher.changed':
        publisher = message['publisher'] as String;
        _notify();
      case 'warning' || 'error':
        problem = '${message['message']} (${message['code']})';
        _notify();
    }
  }

  static const _states = {
    'ready': AvatarState.ready,
    'recovering': AvatarState.recovering,
    'draining': AvatarState.draining,
    'stopped': AvatarState.stopped,
    'failed': AvatarState.failed,
  };

  /// The link is closed for good: the session has ended, another sender has replaced this one, or the network was lost for too long.
  Future<void> _onLinkClosed(int? closeCode) async {
    final session = _session;
    if (session == null) return;
    var sessionState = closeCode == 1001 ? 'stopped' : 'failed';
    try {
      sessionState = await _orchestrator.state(session.sessionId);
    } catch (_) {
      // the orchestrator does not answer: rely on the close code
    }
    if (sessionState == 'stopped' || sessionState == 'failed') await _leave(_states[sessionState]!);
  }

  Future<void> _leave(AvatarState end) async {
    final session = _session, room = _room;
    _session = null;
    _room = null;
    await _events?.dispose();
    await link?.close();
    link = null;
    if (_rendererReady) renderer.srcObject = null;
    _setHasVideo(false);
    _setState(end);
    await room?.disconnect();
    if (session != null) {
      try {
        await _orchestrator.stop(session.sessionId);
      } catch (error) {
        debugPrint('the session will end by itself: $error');
      }
    }
  }

  void _updateVideo() => _setHasVideo(renderer.srcObject != null && renderer.videoWidth > _emptyFramePx);

  void _setHasVideo(bool now) {
    if (hasVideo == now) return;
    hasVideo = now;
    _notify();
  }

  void _setState(AvatarState next) {
    if (state == next) return;
    state = next;
    _notify();
  }

  void _notify() {
    if (!_disposed) notifyListeners();
  }

  @override
  void dispose() {
    _disposed = true;
    renderer.removeListener(_updateVideo);
    unawaited(_leave(AvatarState.stopped).whenComplete(() async {
      if (_rendererReady) await renderer.dispose();
      _orchestrator.close();
    }));
    super.dispose();
  }
}
