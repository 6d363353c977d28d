/// A session's `/audio` WebSocket: sends PCM, receives events. After a lost connection sending resumes at `received_samples`.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:typed_data';

/// An unconfirmed item: PCM, or a control message, at its position in samples.
class _Item {
  _Item.audio(this.at, this.pcm) : mark = null;
  _Item.control(this.at, this.mark) : pcm = null;

  int at;
  Int16List? pcm;
  final String? mark;
  int ping = 0;

  int get end => at + (pcm?.length ?? 0);
}

class AudioLink {
  /// `onMessage` receives every message except `hello`, `ack` and `pong`. `onClosed` is called when the link is closed for good, with
  /// the WebSocket's close code; 1001 means that the session has ended.
  AudioLink(this.url, {required this.onMessage, required this.onClosed});

  final String url;
  final void Function(Map<String, dynamic> message) onMessage;
  final void Function(int? closeCode) onClosed;

  static const _backOff = [100, 250, 500, 1000, 2000, 4000, 8000]; // ms
  static const _finalCodes = {1000, 1001, 1008};
  static const maxWaiting = 20 * 16000; // samples that may wait for a lost connection

  final _pending = <_Item>[];
  int _position = 0;
  bool _aligned = false;
  WebSocket? _socket;
  bool _open = false;
  bool _wanted = false;
  int _attempts = 0;
  int _pings = 0;
  int _pongs = 0;

  Future<void> open() async {
    if (_wanted) return;
    _wanted = true;
    await _run();
  }

  Future<void> close() async {
    _wanted = false;
    _open = false;
    await _socket?.close(1000);
  }

  /// `start` opens a segment, `end` closes it. `clear` drops everything that is not played yet.
  void start() => _append(_Item.control(_position, 'audio.start'));
  void end() => _append(_Item.control(_position, 'audio.end'));
  void clear() => _append(_Item.control(_position, 'clear'));

  /// Sends 16-bit mono PCM at 16 kHz. Returns false when too much waits for a connection: the chunk is discarded.
  bool push(Int16List pcm) {
    final waiting = _pending.isEmpty ? 0 : _position - _pending.first.at;
    if (waiting + pcm.length > maxWaiting) return false;
    _append(_Item.audio(_position, pcm));
    _position += pcm.length;
    return true;
  }

  Future<void> _run() async {
    int? code;
    while (_wanted && _attempts <= _backOff.length) {
      try {
        final socket = await WebSocket.connect(url);
        _socket = socket;
        await for (final message in socket) {
          if (message is String) _receive(jsonDecode(message) as Map<String, dynamic>);
        }
        code = socket.closeCode;
      } on IOException catch (_) {
        code = null; // refused, or lost without a close code
      }
      _open = false;
      _socket = null;
      if (_finalCodes.contains(code)) break;
      if (_wanted && _attempts < _backOff.length) {
        await Future<void>.delayed(Duration(milliseconds: _backOff[_attempts]));
      }
      _attempts += 1;
    }
    final wanted = _wanted;
    _wanted = false;
    if (wanted) onClosed(code);
  }

  void _receive(Map<String, dynamic> message) {
    switch (message['type']) {
      case 'hello':
        _resume(message['received_samples'] as int);
      case 'ack':
        _confirmPcm(message['received_samples'] as int);
      case 'pong':
        _pongs += 1;
        _pending.removeWhere((item) => item.mark != null && item.ping > 0 && item.ping <= _pongs);
      default:
        onMessage(message);
    }
  }

  void _resume(int received) {
    _attempts = 0;
    _pings = _pongs = 0;
    if (_aligned) {
      _confirmPcm(received);
    } else {
      final shift = received - (_pending.isEmpty ? _position : _pending.first.at);
      for (final item in _pending) {
        item.at += shift;
      }
      _position += shift;
      _aligned = true;
    }
    _open = true;
    for (final item in _pending) {
      _send(item, received);
    }
  }

  void _confirmPcm(int received) =>
      _pending.removeWhere((item) => item.pcm == null ? item.at < received : item.end <= received);

  void _append(_Item item) {
    _pending.add(item);
    if (_open) _send(item, item.at);
  }

  /// Int16List is little endian on every platform that Flutter runs on.
  void _send(_Item item, int from) {
    final pcm = item.pcm;
    if (pcm == null) {
      _socket?.add(jsonEncode({'type': item.mark}));
      _socket?.add(jsonEncode({'type': 'ping'}));
      item.ping = ++_pings;
      return;
    }
    final rest = Int16List.sublistView(pcm, from > item.at ? from - item.at : 0);
    _socket?.add(rest.buffer.asUint8List(rest.offsetInBytes, rest.lengthInBytes));
  }
}
