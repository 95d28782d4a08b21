//! Which queues a result may be sent to.

use super::topology::{dead_queue, later_queue, notices_queue};
use crate::config::AmqpConfig;

/// Whether `amqp.reply_to_allow` permits the queue `name`. The worker's own queues never are:
/// a result in the queue of jobs would be the next job.
#[must_use]
pub fn reply_allowed(config: &AmqpConfig, name: &str) -> bool {
    let queue = &config.queue;
    let own = [queue.clone(), dead_queue(queue), notices_queue(queue), later_queue(queue)];
    !name.is_empty()
        && !own.iter().any(|queue| queue == name)
        && config.reply_to_allow.iter().any(|pattern| matches(pattern, name))
}

/// `*` stands for any text, also none. Linear: each part is taken where it first fits.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        let Some(at) = name.find(part) else { return false };
        name = name.get(at + part.len()..).unwrap_or_default();
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(patterns: &[&str]) -> AmqpConfig {
        AmqpConfig {
            url: String::from("amqp://localhost").into(),
            ca_file: None,
            management_url: None,
            queue: "jobs".into(),
            declare: true,
            delivery_limit: 20,
            lookahead: crate::config::Lookahead::Auto,
            results_exchange: None,
            events_exchange: "events".into(),
            control_exchange: "control".into(),
            reply_to_allow: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
        }
    }

    #[test]
    fn patterns() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&["*"], "replies", true),
            (&["*"], "amq.rabbitmq.reply-to.g1h2AAA==", true),
            (&["*"], "jobs", false),
            (&["*", "jobs"], "jobs.dead", false),
            (&["*", "jobs.dead.notices"], "jobs.dead.notices", false),
            (&["*"], "jobs.later", false),
            (&["*"], "jobs.dead.letters", true),
            (&["*"], "", false),
            (&[], "replies", false),
            (&["team-a.*"], "team-a.replies", true),
            (&["team-a.*"], "team-b.replies", false),
            (&["team-a.*"], "xteam-a.replies", false),
            (&["*.replies"], "a.replies", true),
            (&["*.replies"], "a.replies.b", false),
            (&["a*b*c"], "a-b-b-c", true),
            (&["a*b*c"], "a-c-b", false),
            (&["ab*ba"], "aba", false),
            (&["a**"], "a", true),
            (&["exact"], "exact", true),
            (&["exact"], "exactly", false),
        ];
        for (patterns, name, allowed) in cases {
            assert_eq!(reply_allowed(&config(patterns), name), *allowed, "{patterns:?} {name:?}");
        }
    }
}
