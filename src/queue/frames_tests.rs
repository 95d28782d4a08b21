use amq_protocol::{
    frame::{AMQPFrame, parse_frame},
    protocol::basic::AMQPProperties,
};

use super::*;

fn table(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).unwrap_or_default().to_be_bytes(), content].concat()
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, 1][..], &table(payload), &[0xCE]].concat()
}

/// A content header with these headers, a message id before the end.
fn header(headers: &[u8], message_id: &[u8]) -> Vec<u8> {
    let flags: u16 = 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6;
    let id = [&[u8::try_from(message_id.len()).unwrap_or_default()], message_id].concat();
    let parts: [&[u8]; 6] =
        [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], &flags.to_be_bytes(), &table(headers), &[2], &id, &[0; 8]];
    frame(2, &parts.concat())
}

fn nested(levels: usize, kind: u8) -> Vec<u8> {
    (0..levels).fold(vec![1, b'n', b'V'], |inside, _| match kind {
        b'F' => [&[1, b'n', b'F'][..], &table(&inside)].concat(),
        // An array's items have no names.
        _ => [&[1, b'n', b'A'][..], &table(&[&[b'F'][..], &table(&inside)].concat())].concat(),
    })
}

/// What lapin gets, whatever pieces the bytes come in.
fn passed(bytes: &[u8], piece: usize) -> Vec<u8> {
    let (mut frames, mut out) = (Frames::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        frames.push(piece);
        let mut buffer = [0; 1000];
        while frames.ready > 0 {
            let taken = frames.take(&mut buffer);
            out.extend_from_slice(&buffer[..taken]);
        }
    }
    assert_eq!(out.len(), bytes.len(), "not a byte more or less");
    out
}

fn properties(frame: &[u8]) -> AMQPProperties {
    match parse_frame(frame) {
        Ok((_, AMQPFrame::Header(_, header))) => header.properties,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_nests_too_deep_is_a_string_to_lapin() {
    for kind in [b'F', b'A'] {
        for levels in [1, 7, 15, 16, 3_500, 7_000] {
            let bytes = header(&nested(levels, kind), b"id");
            for piece in [1, 7, 4096, bytes.len()] {
                let out = passed(&bytes, piece);
                let read = properties(&out);
                assert_eq!(read.message_id().as_ref().map(|id| id.as_str()), Some("id"), "{kind} {levels}");
                let as_it_came = levels < DEEPEST_TABLE / if kind == b'F' { 1 } else { 2 };
                assert_eq!(out == bytes, as_it_came, "{kind} {levels}");
            }
        }
    }
}

#[test]
fn names_that_are_no_utf8_stay_readable() {
    let headers = [&[3, b'a', 0xFF, b'b', b'S'][..], &table(b"\xFFtext stays")].concat();
    let out = passed(&header(&headers, b"m\xC3"), 5);
    let read = properties(&out);
    assert_eq!(read.message_id().as_ref().map(|id| id.as_str()), Some("m?"));
    let table = read.headers().as_ref().map(|table| table.inner().clone()).unwrap_or_default();
    assert_eq!(table.keys().map(|key| key.as_str()).collect::<Vec<_>>(), ["a?b"]);

    // basic.deliver: consumer tag, delivery tag and redelivered, exchange, routing key.
    let deliver = [&[0, 60, 0, 60, 1, b'c'][..], &[0; 9], &[2, b'e', 0xE9, 3, b'r', 0xFF, 0xFF]].concat();
    let out = passed(&frame(1, &deliver), 3);
    assert!(matches!(parse_frame(&out[..]), Ok((_, AMQPFrame::Method(..)))));
    // basic.get-ok.
    let get = [&[0, 60, 0, 71][..], &[0; 9], &[1, 0xE9, 1, 0xFF, 0, 0, 0, 1]].concat();
    assert!(matches!(parse_frame(&passed(&frame(1, &get), 4)[..]), Ok((_, AMQPFrame::Method(..)))));
}

#[test]
fn bodies_and_what_is_no_frame_pass_as_they_are() {
    let body = frame(3, &nested(100, b'F'));
    let bytes = [&body[..], &header(&[], b"id"), &frame(8, &[]), &body].concat();
    for piece in [1, 8, 1000] {
        assert_eq!(passed(&bytes, piece), bytes);
    }
    // A broker of another protocol version.
    assert_eq!(passed(b"AMQP\x00\x01\x00\x00", 3), b"AMQP\x00\x01\x00\x00");
    // Fields that end early, unknown types.
    for headers in [&[5, b'a'][..], &[1, b'a', b'F', 0, 0, 0, 9], &[1, b'a', b'?', 1, 2]] {
        let bytes = header(headers, b"id");
        assert_eq!(passed(&bytes, 6), bytes);
    }
}

/// The broker adds to headers what makes the frame larger than it may be.
#[test]
fn of_headers_that_fill_a_frame_those_of_broker_and_workers_are_left() {
    let entry = |name: &[u8], value: &[u8]| {
        [&[u8::try_from(name.len()).unwrap_or_default()], name, b"S", &table(value)].concat()
    };
    let small = [entry(b"pad", &[b'x'; 90_000]), entry(b"x-delivery-count", b"3")].concat();
    let as_it_came = header(&small, b"id");
    assert_eq!(passed(&as_it_came, 4096), as_it_came);

    let many = (0..3_000).flat_map(|number| entry(format!("f{number}").as_bytes(), &[b'x'; 30]));
    for pad in [entry(b"pad", &[b'x'; 131_030]), many.collect(), entry(b"x-pad", &[b'x'; 200_000])] {
        let headers = [pad, entry(b"x-delivery-count", b"3"), entry(b"comfy-cause", b"store")].concat();
        let next = header(&entry(b"next", b"is whole"), b"next");
        let bytes = [header(&headers, b"id"), next.clone()].concat();
        for piece in [1, 4096, bytes.len()] {
            let (mut frames, mut out) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                frames.push(piece);
                let mut buffer = vec![0; frames.ready];
                frames.take(&mut buffer);
                out.append(&mut buffer);
            }
            assert!(out.len() < 1_000 + next.len(), "{}", out.len());
            assert!(out.ends_with(&next));
            let read = properties(&out);
            assert_eq!(read.message_id().as_ref().map(|id| id.as_str()), Some("id"));
            let left = read.headers().as_ref().map(|table| table.inner().clone()).unwrap_or_default();
            assert_eq!(
                left.keys().map(|key| key.as_str()).collect::<Vec<_>>(),
                ["comfy-cause", "x-delivery-count"]
            );
        }
    }
}
