//! The table of addresses and the one way through it: one coarse warp filter per prefix, plain async handlers behind.

mod framework;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, SemaphorePermit};

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, future::BoxFuture};
use http::{HeaderMap, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tower::util::BoxCloneSyncService;
use warp::Filter as _;

use super::{
    body::{Body, Turns},
    caller::Peer,
    fault::Fault,
    parameters::Parameters,
    upload::{self, Pace, Upload},
};
use framework::{answered_by, into_warp};

/// A request, as handlers see it: nothing of the framework.
#[derive(Debug)]
pub struct Request {
    /// What is in the places of the address, in order.
    pub places: Vec<String>,
    /// The query's parameters.
    pub parameters: Parameters,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Who is at the other end.
    pub peer: Peer,
}

impl Request {
    /// The only place of the address.
    #[must_use]
    pub fn place(&self) -> &str {
        self.places.first().map_or("", String::as_str)
    }
}

/// What every handler gives back.
pub type Answered = Result<Response<Body>, Fault>;
/// A handler over a context.
pub type Handler<C> = fn(Arc<C>, Request) -> BoxFuture<'static, Answered>;

/// Who answers: with all of the body, or while it comes.
#[derive(Debug)]
enum Answerer<C> {
    Collected(Handler<C>),
    Streamed(Upload<C>),
}
/// What the connection loop calls.
pub type Service = BoxCloneSyncService<http::Request<Incoming>, warp::reply::Response, Infallible>;

/// Who may send a body at all; asked before any of it is read.
pub type Guard<C> = fn(&C, &Peer, &HeaderMap) -> Result<(), Fault>;

/// Bytes of all bodies that are being read or answered, at most.
const BODIES_BYTES_MAX: u32 = 64 << 20;
/// Bytes of all bodies that anybody may send, at most: apart, so that nobody in particular keeps no gateway out.
const OPEN_BODIES_BYTES_MAX: u32 = 2 << 20;

/// Streamed answers that are under way, at most: each has a few blocks in memory.
const STREAMS_MAX: usize = 64;
/// Of them to one caller: one that does not read keeps no place from the others.
const STREAMS_OF_ONE_MAX: usize = 16;

/// One address, one method, one handler.
#[derive(Debug)]
pub struct Route<C> {
    /// GET answers HEAD as well.
    pub method: Method,
    /// The address; `{..}` is a place.
    pub path: &'static str,
    answerer: Answerer<C>,
    /// Who may send a body; `None` is anybody.
    guard: Option<Guard<C>>,
    /// Bytes of a body, at most.
    body_bytes_max: u32,
    /// Whether it answers for the network, and so only while this node may.
    speaks_for_all: bool,
    /// The FHIR type and interaction, for the CapabilityStatement.
    pub interaction: Option<(&'static str, &'static str)>,
}

impl<C> Route<C> {
    /// Answers GET and HEAD; takes no body.
    pub const fn get(path: &'static str, handler: Handler<C>) -> Self {
        Self::new(Method::GET, path, 0, Answerer::Collected(handler))
    }

    /// Answers POST with a body of at most so many bytes, from anybody.
    pub const fn post(path: &'static str, body_bytes_max: u32, handler: Handler<C>) -> Self {
        Self::new(Method::POST, path, body_bytes_max, Answerer::Collected(handler))
    }

    /// Answers POST while the body comes, from whom the guard lets pass: how long it may be and what becomes of it is for the
    /// handler to say, which bounds its own time.
    pub fn upload(path: &'static str, guard: Guard<C>, upload: Upload<C>) -> Self {
        Self {
            guard: Some(guard),
            ..Self::new(Method::POST, path, 0, Answerer::Streamed(upload))
        }
    }

    const fn new(method: Method, path: &'static str, body_bytes_max: u32, answerer: Answerer<C>) -> Self {
        Self {
            method,
            path,
            answerer,
            guard: None,
            body_bytes_max,
            speaks_for_all: false,
            interaction: None,
        }
    }

    /// Reads the bodies of those alone whom the guard lets pass.
    #[must_use]
    pub fn from(mut self, guard: Guard<C>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Answers only while this node may speak for the network.
    #[must_use]
    pub fn for_all(mut self) -> Self {
        self.speaks_for_all = true;
        self
    }

    /// Is this interaction of this FHIR type.
    #[must_use]
    pub fn is(mut self, resource: &'static str, interaction: &'static str) -> Self {
        self.interaction = Some((resource, interaction));
        self
    }

    /// What is in the places, if the path is this address.
    fn places(&self, path: &str) -> Option<Vec<String>> {
        let mut places = Vec::new();
        let (mut expected, mut segments) = (self.path.split('/'), path.split('/'));
        loop {
            match (expected.next(), segments.next()) {
                (None, None) => return Some(places),
                (Some(place), Some(segment)) if place.starts_with('{') && !segment.is_empty() => {
                    places.push(segment.to_owned())
                }
                (Some(same), Some(segment)) if same == segment => {}
                _ => return None,
            }
        }
    }

    fn answers(&self, method: &Method) -> bool {
        self.method == *method || (*method == Method::HEAD && self.method == Method::GET)
    }
}

/// How much and how long a request may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time for the body to arrive.
    pub body_timeout: Duration,
    /// Time for the handler to answer.
    pub answer_timeout: Duration,
}

/// The table and what its handlers work with.
#[derive(Debug)]
pub struct Table<C> {
    routes: Vec<Route<C>>,
    context: Arc<C>,
    bounds: Bounds,
    bodies: Semaphore,
    open_bodies: Semaphore,
    streams: Arc<Turns>,
    may_answer: fn(&C) -> Result<(), Fault>,
}

/// The head of a request, as warp hands it over.
struct Head {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    peer: Option<Peer>,
}

impl<C: Send + Sync + 'static> Table<C> {
    /// A table over a context.
    #[must_use]
    pub fn new(routes: Vec<Route<C>>, context: Arc<C>, bounds: Bounds) -> Self {
        Self {
            routes,
            context,
            bounds,
            bodies: Semaphore::new(BODIES_BYTES_MAX as usize),
            open_bodies: Semaphore::new(OPEN_BODIES_BYTES_MAX as usize),
            streams: Arc::new(Turns::new(STREAMS_MAX, STREAMS_OF_ONE_MAX)),
            may_answer: |_| Ok(()),
        }
    }

    /// What answers for the network does so only while this says yes.
    #[must_use]
    pub fn answering_if(mut self, may_answer: fn(&C) -> Result<(), Fault>) -> Self {
        self.may_answer = may_answer;
        self
    }

    /// The table behind warp: a filter per prefix, a last one for everything else, their types erased.
    #[must_use]
    pub fn into_service(self, prefixes: &[&'static str]) -> Service {
        let table = Arc::new(self);
        let mut filter = warp::any()
            .map(|| ())
            .untuple_one()
            .and(answered_by(table.clone()))
            .boxed();
        for prefix in prefixes {
            filter = warp::path(*prefix)
                .and(answered_by(table.clone()))
                .or(filter)
                .unify()
                .boxed();
        }
        // The last filter takes everything; a rejection would be a filter's own fault, and is an OperationOutcome too.
        let filter = filter.recover(|rejection: warp::Rejection| async move {
            let fault = if rejection.is_not_found() {
                nowhere()
            } else {
                Fault::internal("the request could not be read")
            };
            Ok::<_, Infallible>(into_warp(fault.into_response().map(Body::from), false))
        });
        BoxCloneSyncService::new(warp::service(filter.map(warp::Reply::into_response).boxed()))
    }

    async fn answer<B: Buf + 'static, E: 'static>(
        &self,
        head: Head,
        body: impl Stream<Item = Result<B, E>> + Send + 'static,
    ) -> warp::reply::Response {
        let (is_head, peer) = (head.method == Method::HEAD, head.peer);
        let answered = self
            .dispatch(head, body)
            .await
            .and_then(|response| self.in_turn(response, peer));
        let response = answered.unwrap_or_else(|fault| fault.into_response().map(Body::from));
        metrics::counter!("fog_http_answers_total", "status" => response.status().as_str().to_owned()).increment(1);
        into_warp(response, is_head)
    }

    async fn dispatch<B: Buf + 'static, E: 'static>(
        &self,
        head: Head,
        body: impl Stream<Item = Result<B, E>> + Send + 'static,
    ) -> Answered {
        let (route, places) = self.find(&head.method, &head.path)?;
        let peer = head.peer.ok_or_else(|| Fault::internal("the connection has no peer"))?;
        if route.speaks_for_all {
            (self.may_answer)(&self.context)?;
        }
        let mut request = Request {
            places,
            parameters: Parameters::parse(head.query.as_deref().unwrap_or_default()),
            headers: head.headers,
            body: Bytes::new(),
            peer,
        };
        let handler = match route.answerer {
            Answerer::Collected(handler) => handler,
            Answerer::Streamed(upload) => {
                unencoded(&request.headers)?;
                let body = upload::paced(body, Pace::of(self.bounds.body_timeout));
                let asked = |guard: Guard<C>| guard(&self.context, &request.peer, &request.headers);
                if let Some(Err(fault)) = route.guard.map(asked) {
                    // Whose token was read is heard out; a stranger's connection breaks.
                    if fault.status() == StatusCode::FORBIDDEN {
                        drop(upload::heard_out(body));
                    }
                    return Err(fault);
                }
                let body = upload::heard_out(body);
                return upload(self.context.clone(), request, body).await;
            }
        };
        let announced = self.announced(route, &request.headers)?;
        if let Some(guard) = route.guard.filter(|_| announced != Some(0)) {
            guard(&self.context, &request.peer, &request.headers)?;
        }
        let _share = self.share(route, announced.unwrap_or(route.body_bytes_max))?;
        let body = collect(announced.unwrap_or(route.body_bytes_max) as usize, body);
        let body = tokio::time::timeout(self.bounds.body_timeout, body).await;
        request.body = body.map_err(|_| Fault::too_slow("the body did not arrive in time"))??;
        let answered = tokio::time::timeout(self.bounds.answer_timeout, handler(self.context.clone(), request)).await;
        answered.map_err(|_| Fault::unavailable("the answer took too long; try again, or ask another node"))?
    }

    /// Lets a streamed answer begin if not too many are under way.
    fn in_turn(&self, response: Response<Body>, peer: Option<Peer>) -> Answered {
        let (head, body) = response.into_parts();
        let body = peer.and_then(|peer| body.in_turn(&self.streams, &peer));
        let body = body.ok_or_else(|| Fault::unavailable("too many large answers are on their way; ask again"))?;
        Ok(Response::from_parts(head, body))
    }

    fn find(&self, method: &Method, path: &str) -> Result<(&Route<C>, Vec<String>), Fault> {
        let here: Vec<_> = self
            .routes
            .iter()
            .filter_map(|route| Some((route, route.places(path)?)))
            .collect();
        if here.is_empty() {
            return Err(nowhere());
        }
        let mut allowed: Vec<_> = here.iter().map(|(route, _)| route.method.as_str()).collect();
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        allowed.sort_unstable();
        let allowed = allowed.join(", ");
        here.into_iter()
            .find(|(route, _)| route.answers(method))
            .ok_or_else(|| Fault::method_not_allowed(&allowed))
    }

    /// How long the body says it is; `None` if it does not say. More than the address takes is refused unread.
    fn announced(&self, route: &Route<C>, headers: &HeaderMap) -> Result<Option<u32>, Fault> {
        unencoded(headers)?;
        let length = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        match length.map(u32::try_from) {
            None if route.body_bytes_max == 0 => Ok(Some(0)),
            None => Ok(None),
            Some(Ok(length)) if length <= route.body_bytes_max => Ok(Some(length)),
            Some(_) => Err(too_large(route.body_bytes_max as usize)),
        }
    }

    /// A share of the memory for bodies.
    fn share(&self, route: &Route<C>, bytes: u32) -> Result<SemaphorePermit<'_>, Fault> {
        let memory = if route.guard.is_some() {
            &self.bodies
        } else {
            &self.open_bodies
        };
        memory
            .try_acquire_many(bytes)
            .map_err(|_| Fault::unavailable("too many bodies are on their way; send yours again"))
    }
}

fn unencoded(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Fault::unsupported_media("send the body without Content-Encoding"));
    }
    Ok(())
}

/// The whole body, counted while it arrives, whatever its Content-Length says.
async fn collect<B: Buf, E>(bytes_max: usize, body: impl Stream<Item = Result<B, E>> + Send) -> Result<Bytes, Fault> {
    let mut body = pin!(body);
    let mut bytes = BytesMut::new();
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| Fault::invalid("the body was cut off"))?;
        if bytes.len() + part.remaining() > bytes_max {
            return Err(too_large(bytes_max));
        }
        while part.has_remaining() {
            let length = part.chunk().len();
            bytes.extend_from_slice(part.chunk());
            part.advance(length);
        }
    }
    Ok(bytes.freeze())
}

fn too_large(bytes_max: usize) -> Fault {
    Fault::too_large(match bytes_max {
        0 => "this address takes no body".to_owned(),
        _ => format!("the body may have at most {bytes_max} bytes"),
    })
}

fn nowhere() -> Fault {
    Fault::not_found("there is nothing at this address; GET /fhir/metadata lists what is served")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer;
    use http::HeaderValue;

    fn table() -> Table<()> {
        let echo: Handler<()> = |_, request| Box::pin(async move { Ok(answer::json(StatusCode::OK, &request.places)) });
        let routes = vec![
            Route::get("/fhir/Patient", echo),
            Route::get("/fhir/Patient/{id}", echo),
            Route::post("/fhir/Patient", 4, echo),
        ];
        let second = Duration::from_secs(1);
        Table::new(
            routes,
            Arc::new(()),
            Bounds {
                body_timeout: second,
                answer_timeout: second,
            },
        )
    }

    #[test]
    fn an_address_is_found_with_its_places() {
        let table = table();
        assert_eq!(table.find(&Method::GET, "/fhir/Patient/7").expect("found").1, ["7"]);
        assert!(table.find(&Method::HEAD, "/fhir/Patient/7").is_ok());
        for nowhere in ["/", "/fhir", "/fhir/Patient/", "/fhir/Patient/7/8", "/FHIR/Patient"] {
            assert_eq!(table.find(&Method::GET, nowhere).expect_err(nowhere).status(), 404);
        }
    }

    #[test]
    fn a_wrong_method_learns_the_right_ones() {
        let fault = table()
            .find(&Method::DELETE, "/fhir/Patient")
            .expect_err("no")
            .into_response();
        assert_eq!(fault.status(), 405);
        assert_eq!(fault.headers()[header::ALLOW], "GET, HEAD, POST");
    }

    #[tokio::test]
    async fn a_body_is_counted_whatever_it_announces() {
        let body =
            |parts: &'static [&'static str]| futures::stream::iter(parts.iter().map(|p| Ok::<_, ()>(p.as_bytes())));
        assert_eq!(collect(4, body(&["ab", "cd"])).await.expect("fits"), "abcd");
        assert_eq!(collect(4, body(&["ab", "cde"])).await.expect_err("five").status(), 413);
    }

    #[test]
    fn a_body_that_is_announced_too_large_or_encoded_is_not_read() {
        let table = table();
        let (post, get) = (&table.routes[2], &table.routes[0]);
        let mut headers = HeaderMap::new();
        assert_eq!(table.announced(post, &headers).expect("unsaid"), None);
        assert_eq!(table.announced(get, &headers).expect("none"), Some(0));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(5));
        assert_eq!(table.announced(post, &headers).expect_err("announced").status(), 413);
        assert_eq!(table.announced(get, &headers).expect_err("no body here").status(), 413);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(table.announced(post, &headers).expect_err("encoded").status(), 415);
    }

    fn stranger() -> Peer {
        Peer {
            address: ([127, 0, 0, 1], 9).into(),
            tls: None,
        }
    }

    fn post_head() -> Head {
        Head {
            method: Method::POST,
            path: "/fhir/Patient".to_owned(),
            query: None,
            headers: HeaderMap::new(),
            peer: Some(stranger()),
        }
    }

    #[tokio::test]
    async fn who_may_not_send_a_body_is_refused_before_it_is_read() {
        let mut table = table();
        table.routes[2].guard = Some(|(), _, _| Err(Fault::forbidden("not you")));
        // A body that never comes: reading it would last until the timeout.
        let never = futures::stream::pending::<Result<Bytes, ()>>();
        assert_eq!(
            table.dispatch(post_head(), never).await.expect_err("refused").status(),
            403
        );
    }

    #[tokio::test]
    async fn an_upload_is_handed_on_while_it_comes_to_whom_the_guard_lets_pass() {
        use futures::TryStreamExt as _;
        let count: Upload<()> = |_, _, body| {
            Box::pin(async move {
                let pieces: Vec<Bytes> = body.try_collect().await.map_err(|_| Fault::invalid("cut off"))?;
                Ok(answer::json(StatusCode::OK, &pieces.len()))
            })
        };
        let guarded = |guard: Guard<()>| {
            let mut table = table();
            table.routes[2] = Route::upload("/fhir/Patient", guard, count);
            table
        };
        let body = || futures::stream::iter(["abcd", "efgh", "ij"].map(|part| Ok::<_, ()>(part.as_bytes())));
        let open = guarded(|(), _, _| Ok(()));
        let answered = open.dispatch(post_head(), body()).await.expect("taken");
        assert_eq!(
            answered.body().in_memory().expect("small"),
            "3",
            "more than the four bytes of a small body"
        );
        let cut = futures::stream::iter([Ok("abcd".as_bytes()), Err(())]);
        assert_eq!(open.dispatch(post_head(), cut).await.expect_err("cut").status(), 400);
        let never = futures::stream::pending::<Result<Bytes, ()>>();
        let shut = guarded(|(), _, _| Err(Fault::forbidden("not you")));
        assert_eq!(
            shut.dispatch(post_head(), never).await.expect_err("refused").status(),
            403
        );
    }

    #[tokio::test]
    async fn what_speaks_for_all_is_silent_while_it_may_not() {
        let mut table = table().answering_if(|()| Err(Fault::unavailable("diverged")));
        let nothing = || futures::stream::empty::<Result<Bytes, ()>>();
        let get = || Head {
            method: Method::GET,
            ..post_head()
        };
        assert!(table.dispatch(get(), nothing()).await.is_ok());
        table.routes[0].speaks_for_all = true;
        assert_eq!(
            table.dispatch(get(), nothing()).await.expect_err("diverged").status(),
            503
        );
    }

    #[tokio::test]
    async fn bodies_share_a_bounded_memory() {
        let table = table();
        let all = table
            .share(&table.routes[2], OPEN_BODIES_BYTES_MAX)
            .expect("nothing else");
        let body = futures::stream::iter([Ok::<_, ()>("abcd".as_bytes())]);
        assert_eq!(
            table
                .dispatch(post_head(), body.clone())
                .await
                .expect_err("full")
                .status(),
            503
        );
        drop(all);
        assert!(table.dispatch(post_head(), body).await.is_ok());
    }
}
