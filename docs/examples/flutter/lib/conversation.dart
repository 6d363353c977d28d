/// A conversation in an app: the avatar hears the phone's microphone and answers; both sides' words are shown as they come.
library;

import 'dart:async';
import 'dart:convert';

import 'package:flutter/foundation.dart';
import 'package:livekit_client/livekit_client.dart';

/// One line: what the user or the avatar says.
class Line {
  Line(this.id, {required this.mine});

  final String id;
  final bool mine;
  String text = '';
}

/// Goes with an `Avatar` that is started with [request].
class Conversation extends ChangeNotifier {
  /// What `POST /session/start` takes as `conversation`.
  static const request = {
    'instructions': 'You are a friendly guide. Answer in one or two short sentences.',
    'greeting': 'Hello, what would you like to know?',
  };

  /// The words so far, oldest first; the last [most] lines.
  final lines = <Line>[];
  static const most = 100;

  /// Whether the avatar hears the microphone.
  bool listening = false;

  Room? _room;
  bool _disposed = false;

  /// To be called before the room is connected, so that no word is missed.
  void follow(Room room) {
    _room = room;
    room.registerTextStreamHandler('lk.transcription', (TextStreamReader reader, String identity) {
      unawaited(_read(reader, mine: identity == room.localParticipant?.identity));
    });
  }

  /// Publishes the microphone; the system asks for permission the first time. Echo cancellation is on by default.
  Future<void> listen(bool on) async {
    await _room?.localParticipant?.setMicrophoneEnabled(on);
    listening = on;
    _notify();
  }

  /// The same as having said it.
  Future<void> send(String text) async {
    _line('text-${lines.length}-$text', mine: true).text = text;
    _notify();
    await _room?.localParticipant?.sendText(text, options: SendTextOptions(topic: 'lk.chat'));
  }

  /// A stream is a line that grows; one with the id of an earlier line replaces its words.
  Future<void> _read(TextStreamReader reader, {required bool mine}) async {
    final id = reader.info?.attributes['lk.segment_id'] ?? reader.info?.id ?? '';
    var text = '';
    try {
      await for (final chunk in reader) {
        text += utf8.decode(chunk.content, allowMalformed: true);
        _line(id, mine: mine).text = text;
        _notify();
      }
    } catch (error) {
      debugPrint('a line was cut off: $error');
    }
  }

  Line _line(String id, {required bool mine}) {
    for (final line in lines.reversed) {
      if (line.id == id && line.mine == mine) return line;
    }
    final line = Line(id, mine: mine);
    lines.add(line);
    if (lines.length > most) lines.removeAt(0);
    return line;
  }

  void _notify() {
    if (!_disposed) notifyListeners();
  }

  @override
  void dispose() {
    _disposed = true;
    super.dispose();
  }
}
