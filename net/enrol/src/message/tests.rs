use super::*;

#[test]
fn messages_serialize_as_documented() {
    let pod = Pod { uid: "c//Pod/a/b".into(), namespace: "a".into(), name: "b".into() };
    let rows = [
        (
            Message::Hello { version: 1, source: "harness".parse().unwrap() },
            r#"{"hello":{"version":1,"source":"harness"}}"#,
        ),
        (Message::Add(pod), r#"{"add":{"uid":"c//Pod/a/b","namespace":"a","name":"b"}}"#),
        (Message::Keep { uid: "u".into() }, r#"{"keep":{"uid":"u"}}"#),
        (Message::Delete { uid: "u".into() }, r#"{"delete":{"uid":"u"}}"#),
        (Message::SnapshotSent, r#""snapshot_sent""#),
        (Message::NodeNetwork {}, r#"{"node_network":{}}"#),
        (Message::Ending, r#""ending""#),
    ];
    for (message, json) in rows {
        assert_eq!(serde_json::to_string(&message).unwrap(), json);
        assert_eq!(Message::parse(json.as_bytes()).unwrap(), message);
    }
    assert_eq!(serde_json::to_string(&Answer::Ack {}).unwrap(), r#"{"ack":{}}"#);
    let refused = Answer::Refused { reason: "no".into() };
    assert_eq!(serde_json::to_string(&refused).unwrap(), r#"{"refused":{"reason":"no"}}"#);
}

#[test]
fn invalid_messages_name_their_field() {
    let long = format!(r#"{{"keep":{{"uid":"{}"}}}}"#, "x".repeat(MAX_UID + 1));
    let rows = [
        ("not JSON", "garbage", "expected value"),
        ("empty", "", "EOF"),
        ("unknown kind", r#"{"conquer":{}}"#, "unknown variant"),
        ("another version", r#"{"hello":{"version":2,"source":"x"}}"#, "protocol version 2"),
        ("source with capitals", r#"{"hello":{"version":1,"source":"Harness"}}"#, "source name"),
        ("source empty", r#"{"hello":{"version":1,"source":""}}"#, "source name"),
        ("uid missing", r#"{"add":{"namespace":"a","name":"b"}}"#, "missing field `uid`"),
        ("uid empty", r#"{"keep":{"uid":""}}"#, "field uid"),
        ("name with a line break", r#"{"add":{"uid":"u","namespace":"a","name":"b\nc"}}"#, "field name"),
        ("uid too long", &long, "field uid"),
    ];
    for (name, json, expected) in rows {
        let error = Message::parse(json.as_bytes()).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}
