//! The SDK's client: where it goes, as whom, and how long it waits.

use std::time::Duration;

use aws_config::{
    BehaviorVersion, Region, environment::EnvironmentVariableRegionProvider,
    meta::region::RegionProviderChain, profile::ProfileFileRegionProvider, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::{
    Client, config,
    config::{Credentials, RequestChecksumCalculation},
};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use super::S3Store;
use crate::config::StoreConfig;

const DEFAULT_REGION: &str = "us-east-1";

/// Tries of one request by the SDK: with `connect` and `backoff` as they are by default, an endpoint that
/// swallows every packet is given up after 5 x 3.1 s + at most 3 s of pauses, below 20 s.
const ATTEMPTS: u32 = 5;

/// How long this store waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferLimits {
    /// For a connection. 3.1 s leave room for two lost SYN packets (sent again after 1 and 3 s).
    pub(super) connect: Duration,
    /// From one try of a request to the head of its answer; uploads get more, by their size.
    pub(super) attempt: Duration,
    /// For a request with all its tries.
    pub(super) operation: Duration,
    /// A body must bring [`Self::least_bytes`] within this time of waiting for it.
    pub(super) stall: Duration,
    /// See [`Self::stall`].
    pub(super) least_bytes: u64,
    /// The first pause between tries; they double, with jitter.
    pub(super) backoff: Duration,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(3100),
            attempt: Duration::from_secs(15),
            operation: Duration::from_secs(60),
            stall: Duration::from_secs(20),
            least_bytes: 64 << 10,
            backoff: Duration::from_millis(200),
        }
    }
}

impl S3Store {
    pub(super) async fn with_limits(
        config: &StoreConfig,
        keys: Option<(&str, &SecretString)>,
        limits: TransferLimits,
    ) -> Self {
        // Without the SDK's last resort for a region, the EC2 metadata service: nothing is contacted here.
        let region = RegionProviderChain::first_try(config.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::new(DEFAULT_REGION));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(limits.connect)
            .operation_attempt_timeout(limits.attempt)
            .operation_timeout(limits.operation)
            .build();
        // Downloads have their own watch, which measures only the time spent waiting.
        let stalls = StalledStreamProtectionConfig::enabled()
            .upload_enabled(true)
            .download_enabled(false)
            .grace_period(limits.stall)
            .build();
        let mut loader = aws_config::defaults(behavior())
            .region(region)
            .retry_config(
                RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(limits.backoff),
            )
            .timeout_config(timeouts)
            .stalled_stream_protection(stalls);
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint.as_str());
        }
        if let Some((access_key, secret_key)) = keys {
            let keys = Credentials::new(access_key, secret_key.expose_secret(), None, None, "comfy-worker");
            loader = loader.credentials_provider(keys);
        }
        let shared = loader.load().await;

        // An endpoint of the AWS chain counts like `store.endpoint`: most stores beside Amazon's
        // have no host name for each bucket.
        let from_chain = shared.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
        let path_style = config.path_style || (config.endpoint.is_none() && from_chain);
        let client = Client::from_conf(config::Builder::from(&shared).force_path_style(path_style).build());
        let region = shared.region().map_or(DEFAULT_REGION, Region::as_ref);
        let place = match shared.endpoint_url().and_then(|text| Url::parse(text).ok()) {
            Some(endpoint) => format!("{} (region {region})", bare(&endpoint)),
            None => format!("Amazon S3 (region {region})"),
        };
        let checksums =
            !matches!(shared.request_checksum_calculation(), Some(RequestChecksumCalculation::WhenRequired));
        Self {
            client,
            place: place.into(),
            checksums,
            limits,
            cleanup: TaskTracker::new(),
            closing: CancellationToken::new(),
            notes: None,
        }
    }
}

/// A fixed one, so that an update of the SDK changes no time limit or retry unnoticed.
fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

/// Scheme, host and port: the rest of an endpoint may hold a password.
fn bare(endpoint: &Url) -> String {
    endpoint.origin().ascii_serialization()
}
