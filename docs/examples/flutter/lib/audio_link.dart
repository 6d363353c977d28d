/// A session's `/audio` WebSocket: PCM in, events out. After a lost connection the sender goes on from `received_samples`.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:typed_data';

/// What was sent and is not known to have arrived: PCM, or a control message, at its place in samples.
class _Item {
  _Item.sound(this.at, this.pcm) : mark = null;
  _Item.control(this.at, this.mark) : pcm = null;

  int at;
  Int16List? pcm;
  final String? mark;
  int ping = 0;

  int get end => at + (pcm?.length ?? 0);
}

class AudioLink {
  /// `onMessage` gets every event of the wire but `hello`, `ack` and `pong`. `onOver`: no more connection will be made; the
  /// WebSocket's close code, 1001 when the session has ended.
  AudioLink(this.url, {required this.onMessage, required this.onOver});

  final String url;
  final void Function(Map<String, dynamic> message) onMessage;
  final void Function(int? closeCode) onOver;

  static const _waits = [100, 250, 500, 1000, 2000, 4000, 8000]; // ms
  static const _closedForGood = {1000, 1001, 1008};
  static const maxWaiting = 20 * 16000; // samples that may wait for a connection

  final _pending = <_Item>[];
  int _position = 0;
  bool _inStep = false;
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

  /// Opens a segment; `end` closes it. `clear` drops everything that was not heard yet.
  void start() => _append(_Item.control(_position, 'audio.start'));
  void end() => _append(_Item.control(_position, 'audio.end'));
  void clear() => _append(_Item.control(_position, 'clear'));

  /// 16-bit mono PCM at 16 kHz. False when too much waits for a connection: then nothing was taken.
  bool push(Int16List pcm) {
    final waiting = _pending.isEmpty ? 0 : _position - _pending.first.at;
    if (waiting + pcm.length > maxWaiting) return false;
    _append(_Item.sound(_position, pcm));
    _position += pcm.length;
    return true;
  }

  Future<void> _run() async {
    int? code;
    while (_wanted && _attempts <= _waits.length) {
      try {
        final socket = await WebSocket.connect(url);
        _socket = socket;
        await for (final message in socket) {
          if (message is String) _receive(jsonDecode(message) as Map<String, dynamic>);
        }
        code = socket.closeCode;
      } on IOException catch (_) {
        code = null; // refused, or lost without a word
      }
      _open = false;
      _socket = null;
      if (_closedForGood.contains(code)) break;
      if (_wanted && _attempts < _waits.length) {
        await Future<void>.delayed(Duration(milliseconds: _waits[_attempts]));
      }
      _attempts += 1;
    }
    final wanted = _wanted;
    _wanted = false;
    if (wanted) onOver(code);
  }

  void _receive(Map<String, dynamic> message) {
    switch (message['type']) {
      case 'hello':
        _resume(message['received_samples'] as int);
      case 'ack':
        _forget(message['received_samples'] as int);
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
    if (_inStep) {
      _forget(received);
    } else {
      final shift = received - (_pending.isEmpty ? _position : _pending.first.at);
      for (final item in _pending) {
        item.at += shift;
      }
      _position += shift;
      _inStep = true;
    }
    _open = true;
    for (final item in _pending) {
      _send(item, received);
    }
  }

  void _forget(int received) =>
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
