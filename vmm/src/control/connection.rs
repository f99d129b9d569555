//! One client's connection.

use std::convert::Infallible;
use std::rc::Rc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::{Answer, Refusal, closing};
use super::head::{HeadGate, HeadNotes};
use super::router::{self, Route};
use super::routes::{self, Call};
use super::server::Control;

/// Serves `socket` until its client leaves, breaks a limit, or `stop` says so and the answer under
/// way is sent.
pub(super) async fn serve(
    socket: UnixStream,
    control: Rc<Control>,
    notes: Rc<HeadNotes>,
    mut stop: watch::Receiver<bool>,
) {
    let gate = HeadGate::new(socket, control.limits, Rc::clone(&notes));
    let service = service_fn(|request| {
        let (control, notes) = (Rc::clone(&control), Rc::clone(&notes));
        async move { Ok::<_, Infallible>(answer(&control, &notes, request).await) }
    });
    let mut http = http1::Builder::new();
    http.half_close(true).auto_date_header(false).header_read_timeout(None);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(gate), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _changed_or_gone = stop.wait_for(|stop| *stop) => {
            if notes.idle_since().is_some() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that disconnects or stops reading is its own business.
        log::debug!("control: connection ended: {error}");
    }
}

async fn answer(control: &Rc<Control>, notes: &HeadNotes, request: Request<Incoming>) -> Answer {
    control.counters.count_request();
    let note = notes.take();
    if let Some((status, message)) = note.fault {
        control.counters.count_refusal();
        return closing(Refusal::new(status, message).into());
    }
    let found = router::find(request.method(), request.uri().path());
    let served = match found {
        None => {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            // The body is read all the same, so that the connection can go on.
            read_body(control, request).await.and_then(|_unused| {
                Err(Refusal::bad_request(format!(
                    "Invalid request method and/or path: {method} {path}."
                )))
            })
        }
        Some(found) => {
            let route = (found.route, found.name.to_owned());
            let is_firecracker = found.is_firecracker;
            serve_found(control, route, note.is_http10, request).await.map_err(|refusal| {
                if is_firecracker { refusal.in_firecracker_status() } else { refusal }
            })
        }
    };
    served.unwrap_or_else(|refusal| {
        control.counters.count_refusal();
        let is_unread = refusal.status == StatusCode::REQUEST_TIMEOUT;
        let answer = refusal.into();
        if is_unread { closing(answer) } else { answer }
    })
}

async fn serve_found(
    control: &Rc<Control>,
    (route, name): (Route, String),
    is_http10: bool,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let method = request.method().clone();
    let query = request.uri().query().map(str::to_owned);
    let body = read_body(control, request).await?;
    if method == Method::GET && !body.is_empty() {
        return Err(Refusal::bad_request("GET request cannot have a body."));
    }
    if method != Method::GET && body.is_empty() && !route.takes_no_body() {
        return Err(Refusal::bad_request(format!("Empty {method} request.")));
    }
    routes::serve(control, Call { route, name, query, body, is_http10 }).await
}

async fn read_body(control: &Control, request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let limits = &control.limits;
    // The gate has refused longer bodies already: this bounds what a mistake there could cost.
    let most = usize::try_from(limits.body_bytes).unwrap_or(usize::MAX);
    let body = Limited::new(request.into_body(), most).collect();
    match timeout(limits.body_time, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(Refusal::bad_request(format!("The body cannot be read: {error}"))),
        Err(_elapsed) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("The request's body was not complete within {:?}", limits.body_time),
        )),
    }
}
