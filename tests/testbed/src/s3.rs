//! An S3 server in this process, its objects plain files.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use anyhow::{Context as _, Result, anyhow};
use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::ByteStream,
};
use hyper::{Method, Request, Uri, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{Body, auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, sync::Mutex, task::JoinHandle};

use crate::background;

const ACCESS_KEY: &str = "testbed";
const SECRET_KEY: &str = "testbed-secret";
const REGION: &str = "us-east-1";

/// An S3 server on a free loopback port; it ends when this is dropped.
#[derive(Debug)]
pub struct S3Server {
    root: PathBuf,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl S3Server {
    /// Serves the folder `dir`, which is made if it is missing: a bucket is a folder in it.
    ///
    /// # Errors
    /// When the folder cannot be made or no port can be bound.
    pub async fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let root = dir.canonicalize().with_context(|| format!("cannot read {}", dir.display()))?;
        let files = FileSystem::new(&root)
            .map_err(|error| anyhow!("S3 server over {}: {error:?}", root.display()))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();

        let listener = background::run(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .await?
            .context("no loopback port for the S3 server")?;
        let address = listener.local_addr()?;
        let writing = Writing::default();
        let server = background::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                // Else the end of an answer waits 40 ms for the client's delayed ACK.
                let _ = socket.set_nodelay(true);
                let (service, writing) = (service.clone(), writing.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (service, writing) = (service.clone(), writing.clone());
                    async move {
                        if request.method() != Method::PUT {
                            return service.call(request.map(Body::from)).await;
                        }
                        let turn = writing.turn(request.uri());
                        let put = tokio::spawn(async move {
                            let _turn = turn.lock_owned().await;
                            service.call(request.map(Body::from)).await
                        });
                        put.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
                    }
                });
                // Detached: a connection ends with its client.
                drop(tokio::spawn(async move {
                    let http = Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                }));
            }
        })?;
        Ok(Self { root, address, server })
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The one access key that it knows.
    #[must_use]
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// That key's secret.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// Makes a bucket (3 letters or more); one that is there already stays as it is.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        fs::create_dir_all(self.root.join(name)).with_context(|| format!("cannot make the bucket {name}"))
    }

    /// The variables that lead a child here and nowhere else: whatever profile or session the
    /// person at the keyboard has is out of its sight. Empty values unset.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL", &self.endpoint()),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Where the object lies on disk.
    #[must_use]
    pub fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// Multipart uploads that were begun and neither completed nor aborted: their records. Parts without one are what
    /// s3s-fs leaves when its client goes away in the middle of a completion, which S3 does whole or not at all.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn open_uploads(&self) -> Result<Vec<String>> {
        let names =
            fs::read_dir(&self.root)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<Result<_>>()?;
        Ok(names.into_iter().filter(|name| name.starts_with(".upload-")).collect())
    }

    /// A client with this server's address and credentials, made new for the caller's runtime.
    #[must_use]
    pub fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(self.endpoint())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "testbed"))
            .force_path_style(true)
            .build();
        Client::from_conf(config)
    }

    /// Stores an object through S3.
    ///
    /// # Errors
    /// What S3 answers.
    pub async fn put(&self, bucket: &str, key: &str, body: impl Into<Vec<u8>> + Send) -> Result<()> {
        let put = self.client().put_object().bucket(bucket).key(key).body(body.into().into());
        put.send().await.with_context(|| format!("cannot put s3://{bucket}/{key}")).map(drop)
    }

    /// Stores a file through S3, in one request.
    ///
    /// # Errors
    /// When the file cannot be read; what S3 answers.
    pub async fn put_file(&self, bucket: &str, key: &str, file: &Path) -> Result<()> {
        let body = ByteStream::from_path(file).await?;
        let put = self.client().put_object().bucket(bucket).key(key).body(body);
        put.send().await.with_context(|| format!("cannot put s3://{bucket}/{key}")).map(drop)
    }

    /// Reads an object through S3.
    ///
    /// # Errors
    /// What S3 answers.
    pub async fn get(&self, bucket: &str, key: &str) -> Result<Vec<u8>> {
        let get = self.client().get_object().bucket(bucket).key(key).send();
        let object = get.await.with_context(|| format!("cannot get s3://{bucket}/{key}"))?;
        let body = object.body.collect().await.with_context(|| format!("cannot read s3://{bucket}/{key}"))?;
        Ok(body.to_vec())
    }

    /// The keys under `prefix` with their sizes, in order (the first thousand).
    ///
    /// # Errors
    /// What S3 answers.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<(String, u64)>> {
        let list = self.client().list_objects_v2().bucket(bucket).prefix(prefix).send();
        let page = list.await.with_context(|| format!("cannot list s3://{bucket}/{prefix}"))?;
        let objects = page.contents().iter().filter_map(|object| {
            Some((object.key()?.to_owned(), u64::try_from(object.size().unwrap_or(0)).unwrap_or(0)))
        });
        Ok(objects.collect())
    }
}

/// One PUT of an object after the other, and none cut off by its client in the middle. s3s-fs looks
/// whether the object exists, writes it, and then its checksum: two writers at once would both win an
/// If-None-Match, or leave an object that does not match its checksum and cannot be read.
#[derive(Clone, Default)]
struct Writing(Arc<std::sync::Mutex<HashMap<Uri, Arc<Mutex<()>>>>>);

impl Writing {
    fn turn(&self, object: &Uri) -> Arc<Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(object.clone()).or_default())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.server.abort();
    }
}
