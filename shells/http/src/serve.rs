//! The server: accepts connections within bounds, and lets them finish when it is told to stop.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time,
};
use tracing::{debug, warn};

use crate::Limits;

/// How long requests under way may still take once the server is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait when the system refuses a further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` completes; then takes no more connections, finishes the requests that are
/// under way within a few seconds, and returns. Connections are served on the runtime it runs on.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let (stopping, stopped) = watch::channel(false);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head_bytes);
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let serving = connection(http.clone(), stream, router.clone(), stopped.clone());
        tokio::spawn(async move {
            serving.await;
            drop(slot);
        });
    }
    drop(listener);
    // Without a listener there is nothing that a full channel or closed semaphore could break.
    let _ = stopping.send(true);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = time::timeout(GRACE, slots.acquire_many(all)).await;
}

async fn refused(error: &io::Error) {
    let peer =
        matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !peer {
        warn!(%error, "can't accept HTTP connections; the limit of open files may be too low");
        time::sleep(ACCEPT_PAUSE).await;
    }
}

async fn connection(
    http: http1::Builder,
    stream: TcpStream,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    // Without it, small answers wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "can't set TCP_NODELAY");
    }
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        biased;
        ended = serving.as_mut() => ended,
        () = told(&mut stopped) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended with an error");
    }
}

async fn told(stopped: &mut watch::Receiver<bool>) {
    // The sender is gone only once the server is.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
