//! Reads the broker's refusals: `406 PRECONDITION_FAILED - inequivalent arg 'x' for …`.

/// What differs between an existing queue or exchange and the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) argument: String,
    pub(super) wanted: String,
    pub(super) existing: String,
}

/// Understands the text of a 406 on a declaration.
///
/// RabbitMQ 3.10: `PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost
/// '/': received the value '20' of type 'signedint' but current is the value '5' of type 'signedint'`,
/// `… received none but current is …`, `… arg 'durable' …: received 'true' but current is 'false'`.
pub(super) fn difference(text: &str) -> Option<Difference> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once(": received ")?;
    let (wanted, existing) = rest.split_once(" but current is ")?;
    Some(Difference { argument: argument.into(), wanted: value(wanted), existing: value(existing) })
}

fn value(text: &str) -> String {
    let quoted = text.split_once('\'').and_then(|(_, rest)| rest.split_once('\''));
    quoted.map_or_else(|| text.trim().to_owned(), |(value, _)| value.to_owned())
}

/// Whether a refusal will pass by itself: a node or a virtual host that is down, a limit on
/// connections. Names of queues are part of the text, so the signs are whole phrases.
pub(super) fn is_passing(text: &str) -> bool {
    text.contains(" is down") || (text.contains(" limit (") && text.contains(") is reached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_argument_and_both_values() {
        let cases = [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received \
                 the value '20' of type 'signedint' but current is the value '5' of type 'signedint'",
                ("x-delivery-limit", "20", "5"),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'a: b' in vhost 'v': received \
                 the value 'quorum' of type 'longstr' but current is none",
                ("x-queue-type", "quorum", "none"),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': received 'topic' \
                 but current is 'direct'",
                ("type", "topic", "direct"),
            ),
        ];
        for (text, (argument, wanted, existing)) in cases {
            let expected =
                Difference { argument: argument.into(), wanted: wanted.into(), existing: existing.into() };
            assert_eq!(difference(text), Some(expected), "{text}");
        }
        assert_eq!(difference("PRECONDITION_FAILED - something else"), None);
    }

    #[test]
    fn tells_what_passes_from_what_does_not() {
        for text in [
            "NOT_FOUND - home node 'rabbit@b' of durable queue 'jobs' in vhost '/' is down or inaccessible",
            "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (5) is reached",
            "INTERNAL_ERROR - access to vhost '/' refused for user 'guest': vhost '/' is down",
        ] {
            assert!(is_passing(text), "{text}");
        }
        for text in ["NOT_FOUND - no queue 'rate.limit' in vhost '/'", "NOT_ALLOWED - vhost limits not found"]
        {
            assert!(!is_passing(text), "{text}");
        }
    }
}
