//! An S3 server in this process, its objects plain files.

use std::{
    convert::Infallible,
    fs,
    future::poll_fn,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use hyper::{
    Method, Request, StatusCode,
    body::{Body as _, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{Body, HttpResponse, auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify},
    task::JoinHandle,
};

/// What goes wrong with every multipart upload, with its second part most often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartFault {
    /// Nothing.
    #[default]
    None,
    /// It is answered `403`.
    Refuse,
    /// It waits to be released.
    Hang,
    /// Its first try is answered `503`.
    Busy,
    /// It is answered `403`, and so are aborts until [`S3Server::allow_aborts`].
    RefuseAborts,
    /// None: the upload is there, and the answer that says so waits to be released.
    HangBegin,
}

/// An S3 server on a free loopback port; it ends when this is dropped.
#[derive(Debug)]
pub struct S3Server {
    root: PathBuf,
    address: SocketAddr,
    server: JoinHandle<()>,
    /// Aborts of multipart uploads that were asked for so far.
    pub aborts: Arc<AtomicUsize>,
    /// Tries of second parts so far.
    pub tries: Arc<AtomicUsize>,
    /// Told when a part hangs.
    pub hanging: Arc<Notify>,
    /// Told, it lets such parts go on.
    pub released: Arc<Notify>,
    refuses_aborts: Arc<AtomicBool>,
}

impl S3Server {
    pub async fn start(dir: &Path) -> Self {
        Self::with_fault(dir, PartFault::None).await
    }

    pub fn allow_aborts(&self) {
        self.refuses_aborts.store(false, Ordering::SeqCst);
    }

    pub async fn with_fault(dir: &Path, fault: PartFault) -> Self {
        let files = s3s_fs::FileSystem::new(dir).unwrap();
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single("testkey", "testsecret"));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (aborts, tries) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (hanging, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let refuses_aborts = Arc::new(AtomicBool::new(fault == PartFault::RefuseAborts));
        let state = (Arc::clone(&aborts), Arc::clone(&tries), Arc::clone(&hanging), Arc::clone(&released));
        let refusing = Arc::clone(&refuses_aborts);
        // s3s-fs looks whether the object exists and then writes it: without a lock between two
        // requests its If-None-Match lets several of them win.
        let creating = Arc::new(Mutex::new(()));
        let server = tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let (service, creating, state) = (service.clone(), Arc::clone(&creating), state.clone());
                let refusing = Arc::clone(&refusing);
                let handle = service_fn(move |request: Request<Incoming>| {
                    let (service, creating) = (service.clone(), Arc::clone(&creating));
                    let (aborts, tries, hanging, released) = state.clone();
                    let refusing = Arc::clone(&refusing);
                    async move {
                        let query = request.uri().query().unwrap_or_default();
                        if request.method() == Method::PUT && query.contains("partNumber=2") {
                            let tried = tries.fetch_add(1, Ordering::SeqCst);
                            match fault {
                                PartFault::Refuse | PartFault::RefuseAborts => {
                                    return refused(request, StatusCode::FORBIDDEN).await;
                                }
                                PartFault::Busy if tried == 0 => {
                                    return refused(request, StatusCode::SERVICE_UNAVAILABLE).await;
                                }
                                PartFault::Hang => {
                                    hanging.notify_one();
                                    released.notified().await;
                                    // Another try of the same part goes on, too.
                                    released.notify_one();
                                }
                                PartFault::None | PartFault::Busy | PartFault::HangBegin => {}
                            }
                        }
                        let abort = request.method() == Method::DELETE && query.contains("uploadId");
                        if abort && refusing.load(Ordering::SeqCst) {
                            aborts.fetch_add(1, Ordering::SeqCst);
                            return refused(request, StatusCode::FORBIDDEN).await;
                        }
                        let begins = request.method() == Method::POST && query.starts_with("uploads");
                        let alone = request.headers().contains_key("if-none-match");
                        let _guard = if alone { Some(creating.lock().await) } else { None };
                        let answer = service.call(request.map(Body::from)).await;
                        if begins && fault == PartFault::HangBegin {
                            hanging.notify_one();
                            released.notified().await;
                        }
                        if abort {
                            aborts.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok::<_, Infallible>(answer.unwrap_or_else(|_| refusal(StatusCode::FORBIDDEN)))
                    }
                });
                tokio::spawn(async move {
                    let http = Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), handle).await;
                });
            }
        });
        Self { root: dir.to_owned(), address, server, aborts, tries, hanging, released, refuses_aborts }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn access_key(&self) -> &'static str {
        "testkey"
    }

    pub fn secret_key(&self) -> &'static str {
        "testsecret"
    }

    pub fn create_bucket(&self, name: &str) {
        fs::create_dir_all(self.root.join(name)).unwrap();
    }

    pub fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Reads the request to its end first: unread, its connection would be closed, which the client may meet before
/// the answer.
async fn refused(request: Request<Incoming>, status: StatusCode) -> Result<HttpResponse, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {}
    Ok(refusal(status))
}

fn refusal(status: StatusCode) -> HttpResponse {
    let code = if status == StatusCode::FORBIDDEN { "AccessDenied" } else { "SlowDown" };
    let mut answer = HttpResponse::new(Body::from(format!("<Error><Code>{code}</Code></Error>")));
    *answer.status_mut() = status;
    answer
}
