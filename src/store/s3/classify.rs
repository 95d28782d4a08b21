//! What a failed request means: the one table from S3's answers to [`StoreError`].

use std::error::Error;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use contract::{ObjectUri, text::one_line};

use super::S3Store;
use crate::store::StoreError;

/// Longest text of the store's that a message repeats, in characters.
const WORDS: usize = 300;

/// A failed request: what it means, and whether to send it again although the SDK would not.
#[derive(Debug)]
pub(super) struct S3Failure {
    error: StoreError,
    status: Option<u16>,
    repeat: bool,
}

impl S3Failure {
    /// Not to be repeated.
    pub(super) fn last(error: StoreError) -> Self {
        Self { error, status: None, repeat: false }
    }

    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    pub(super) fn is_worth_repeating(&self) -> bool {
        self.repeat
    }

    pub(super) fn into_error(self) -> StoreError {
        self.error
    }
}

/// What is known of a failed request.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Whether the request never left: no endpoint, no region, no credentials.
    pub(super) unsent: bool,
    /// The status of the answer.
    pub(super) status: Option<u16>,
    /// S3's error code, such as `NoSuchKey`; empty where there was none.
    pub(super) code: String,
    /// S3's words, on one line.
    pub(super) words: String,
    /// The messages of the error and its causes.
    pub(super) chain: String,
    /// The region that the bucket is in, where the answer says so.
    pub(super) region: Option<String>,
}

/// Whose fault it is, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    NotFound,
    Forbidden(String),
    Misplaced(String),
    Misconfigured(String),
    Unavailable {
        reason: String,
        /// Worth another try that the SDK does not make.
        repeat: bool,
    },
}

impl S3Store {
    /// What `error` means for the object `uri`.
    pub(super) fn failure<E>(&self, uri: &ObjectUri, error: SdkError<E, HttpResponse>) -> S3Failure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let facts = Facts::of(&error);
        let status = facts.status;
        let uri = uri.to_string();
        let (error, repeat) = match meaning(&facts, &self.place) {
            Meaning::NotFound => (StoreError::NotFound { uri }, false),
            Meaning::Forbidden(reason) => (StoreError::Forbidden { uri, reason }, false),
            Meaning::Misplaced(reason) => (StoreError::Misplaced { uri, reason }, false),
            Meaning::Misconfigured(reason) => (StoreError::Misconfigured { uri, reason }, false),
            Meaning::Unavailable { reason, repeat } => (StoreError::Unavailable { uri, reason }, repeat),
        };
        S3Failure { error, status, repeat }
    }
}

impl Facts {
    fn of<E: ProvideErrorMetadata + Error + 'static>(error: &SdkError<E, HttpResponse>) -> Self {
        let response = error.raw_response();
        let region = response.and_then(|response| response.headers().get("x-amz-bucket-region"));
        Self {
            unsent: matches!(error, SdkError::ConstructionFailure(_)),
            status: response.map(|response| response.status().as_u16()),
            code: one_line(error.code().unwrap_or_default(), WORDS),
            words: one_line(error.message().unwrap_or_default(), WORDS),
            chain: one_line(&chain(error), WORDS),
            region: region.map(|region| one_line(region, WORDS)),
        }
    }
}

/// The messages of an error and its causes, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut messages: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        if !messages.iter().any(|known| known.contains(&message)) {
            messages.push(message);
        }
        next = error.source();
    }
    messages.join(": ")
}

/// The table. `place` is the endpoint and region that were asked.
pub(super) fn meaning(facts: &Facts, place: &str) -> Meaning {
    let words = facts.words();
    let wrong = |change: &str| Meaning::Misconfigured(format!("{change} ({place} says {words})"));
    // Keys that are exchanged are refused for a while: nothing is wrong with the settings.
    let refused = |change: &str| Meaning::Forbidden(format!("{change} ({place} says {words})"));
    let misplaced = |change: &str| Meaning::Misplaced(format!("{change} ({place} says {words})"));
    let unavailable = |repeat| Meaning::Unavailable { reason: format!("{place} answers {words}"), repeat };
    match (facts.code.as_str(), facts.status) {
        ("InvalidAccessKeyId" | "NotSignedUp", _) => {
            refused("the store does not know the access key: check AWS_ACCESS_KEY_ID or the profile")
        }
        ("SignatureDoesNotMatch", _) => {
            refused("the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY or the profile")
        }
        ("ExpiredToken" | "TokenRefreshRequired" | "InvalidToken", _) => {
            refused("the session credentials are expired or invalid: renew them (AWS_SESSION_TOKEN)")
        }
        ("RequestTimeTooSkewed" | "RequestExpired", _) => {
            wrong("this machine's clock differs from the store's: set it")
        }
        ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
        | (_, Some(301)) => match &facts.region {
            Some(region) => {
                misplaced(&format!("the bucket is in another region: set store.region to {region:?}"))
            }
            None => misplaced("the bucket is in another region: set store.region (or store.endpoint)"),
        },
        ("NotImplemented", _) | (_, Some(501)) => wrong(
            "this store lacks what the worker needs: use one that honours If-None-Match and multipart uploads",
        ),
        // After a lost answer the upload may be complete already: writing it all again is safe.
        ("NoSuchUpload", _) => unavailable(true),
        // Two writers at the same moment: one of them has to ask again.
        ("ConditionalRequestConflict" | "OperationAborted", _) => unavailable(true),
        // Damaged on the way.
        ("BadDigest" | "IncompleteBody" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch", _) => {
            unavailable(true)
        }
        ("RequestTimeout" | "SlowDown" | "Throttling" | "InternalError", _) => unavailable(false),
        ("NoSuchKey" | "NoSuchBucket", _) | (_, Some(404 | 410)) => Meaning::NotFound,
        (_, Some(401 | 403)) => Meaning::Forbidden(words),
        (_, Some(307 | 408 | 409 | 425 | 429)) => unavailable(true),
        (_, Some(400..=499)) => wrong("the store refuses the request: check store.uri and store.endpoint"),
        // Also a 200 whose body says that the request failed, or is no S3 answer.
        (_, Some(_)) => unavailable(false),
        (_, None) => unanswered(facts, place),
    }
}

/// There was no answer at all.
fn unanswered(facts: &Facts, place: &str) -> Meaning {
    let says = |texts: &[&str]| texts.iter().any(|text| facts.chain.contains(text));
    let chain = &facts.chain;
    // The types of these causes belong to crates below the SDK; their words are what it shows.
    if says(&["credential provider was not enabled", "no providers in chain provided credentials"]) {
        return Meaning::Misconfigured(
            "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE) or a role"
                .to_owned(),
        );
    }
    if says(&["credentials provider was not properly configured"]) {
        return Meaning::Misconfigured(format!("the AWS credentials are set up wrongly: {chain}"));
    }
    if says(&["certificate", "InvalidContentType"]) {
        return Meaning::Misconfigured(format!("no TLS with {place}: check store.endpoint: {chain}"));
    }
    // A provider that cannot be reached, or is late, is away like the store itself; one that answers "no" has not
    // given this role its rights, yet or any more.
    let network = ["timed out", "timeout", "connect", "dispatch failure: io"];
    if says(&["while loading credentials", "unexpected credentials error"]) && !says(&network) {
        return Meaning::Forbidden(format!("the AWS credentials cannot be loaded: {chain}"));
    }
    if facts.unsent {
        return Meaning::Misconfigured(format!("check store.endpoint and store.region: {chain}"));
    }
    // An upload that stalled: the SDK ends it, but does not try again.
    let stalled = says(&["minimum throughput"]);
    Meaning::Unavailable { reason: format!("no answer from {place}: {chain}"), repeat: stalled }
}

impl Facts {
    /// `403 AccessDenied: the store's words`, or as much of it as there is.
    fn words(&self) -> String {
        let status = self.status.map(|status| status.to_string()).unwrap_or_default();
        let head = [status.as_str(), self.code.as_str()].join(" ");
        let words = if self.code.is_empty() { &self.chain } else { &self.words };
        let text = [head.trim(), words.as_str()].join(": ");
        text.trim_matches([':', ' ']).to_owned()
    }
}
