//! The table of addresses and the one way through it: one coarse warp filter per prefix, plain async handlers behind.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tower::util::BoxCloneSyncService;
use warp::Filter as _;

use super::{answer, caller::Peer, fault::Fault, parameters::Parameters};

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
pub type Answered = Result<Response<Bytes>, Fault>;
/// A handler over a context.
pub type Handler<C> = fn(Arc<C>, Request) -> BoxFuture<'static, Answered>;
/// What the connection loop calls.
pub type Service = BoxCloneSyncService<http::Request<Incoming>, warp::reply::Response, Infallible>;

/// One address, one method, one handler.
#[derive(Debug)]
pub struct Route<C> {
    /// GET answers HEAD as well.
    pub method: Method,
    /// The address; `{..}` is a place.
    pub path: &'static str,
    /// Who answers.
    pub handler: Handler<C>,
    /// The FHIR type and interaction, for the CapabilityStatement.
    pub interaction: Option<(&'static str, &'static str)>,
}

impl<C> Route<C> {
    /// Answers GET and HEAD.
    pub const fn get(path: &'static str, handler: Handler<C>) -> Self {
        Self {
            method: Method::GET,
            path,
            handler,
            interaction: None,
        }
    }

    /// Answers POST.
    pub const fn post(path: &'static str, handler: Handler<C>) -> Self {
        Self {
            method: Method::POST,
            path,
            handler,
            interaction: None,
        }
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
    /// Bytes of a body.
    pub body_bytes_max: usize,
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
    pub const fn new(routes: Vec<Route<C>>, context: Arc<C>, bounds: Bounds) -> Self {
        Self {
            routes,
            context,
            bounds,
        }
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
            Ok::<_, Infallible>(into_warp(fault.into_response(), false))
        });
        BoxCloneSyncService::new(warp::service(filter.map(warp::Reply::into_response).boxed()))
    }

    async fn answer<B: Buf, E>(
        &self,
        head: Head,
        body: impl Stream<Item = Result<B, E>> + Send,
    ) -> warp::reply::Response {
        let is_head = head.method == Method::HEAD;
        let response = self.dispatch(head, body).await.unwrap_or_else(Fault::into_response);
        metrics::counter!("fog_http_answers_total", "status" => response.status().as_str().to_owned()).increment(1);
        into_warp(response, is_head)
    }

    async fn dispatch<B: Buf, E>(&self, head: Head, body: impl Stream<Item = Result<B, E>> + Send) -> Answered {
        let (route, places) = self.find(&head.method, &head.path)?;
        let peer = head.peer.ok_or_else(|| Fault::internal("the connection has no peer"))?;
        let body = self.collect(&head.headers, body);
        let body = tokio::time::timeout(self.bounds.body_timeout, body).await;
        let body = body.map_err(|_| Fault::too_slow("the body did not arrive in time"))??;
        let parameters = Parameters::parse(head.query.as_deref().unwrap_or_default());
        let request = Request {
            places,
            parameters,
            headers: head.headers,
            body,
            peer,
        };
        let answered = tokio::time::timeout(
            self.bounds.answer_timeout,
            (route.handler)(self.context.clone(), request),
        )
        .await;
        answered.map_err(|_| Fault::unavailable("the answer took too long; try again, or ask another node"))?
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

    /// The whole body, counted while it arrives, whatever its Content-Length says.
    async fn collect<B: Buf, E>(
        &self,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, E>> + Send,
    ) -> Result<Bytes, Fault> {
        let bytes_max = self.bounds.body_bytes_max;
        let too_large = || Fault::too_large(format!("the body may have at most {bytes_max} bytes"));
        if headers.contains_key(header::CONTENT_ENCODING) {
            return Err(Fault::unsupported_media("send the body without Content-Encoding"));
        }
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > bytes_max) {
            return Err(too_large());
        }
        let mut body = pin!(body);
        let mut bytes = BytesMut::with_capacity(announced.unwrap_or_default());
        while let Some(part) = body.next().await {
            let mut part = part.map_err(|_| Fault::invalid("the body was cut off"))?;
            if bytes.len() + part.remaining() > bytes_max {
                return Err(too_large());
            }
            while part.has_remaining() {
                let length = part.chunk().len();
                bytes.extend_from_slice(part.chunk());
                part.advance(length);
            }
        }
        Ok(bytes.freeze())
    }
}

fn nowhere() -> Fault {
    Fault::not_found("there is nothing at this address; GET /fhir/metadata lists what is served")
}

/// The one filter, once per prefix: everything of the request, to the table.
fn answered_by<C: Send + Sync + 'static>(table: Arc<Table<C>>) -> warp::filters::BoxedFilter<(warp::reply::Response,)> {
    let query = warp::query::raw().map(Some).or(warp::any().map(|| None)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Peer>())
        .map(|method, path: warp::path::FullPath, query, headers, peer| Head {
            method,
            path: path.as_str().to_owned(),
            query,
            headers,
            peer,
        })
        .and(warp::body::stream())
        .then(move |head, body| {
            let table = table.clone();
            async move { table.answer(head, body).await }
        })
        .boxed()
}

/// Adds the safe headers; a HEAD keeps the length and drops the body.
fn into_warp(response: Response<Bytes>, is_head: bool) -> warp::reply::Response {
    let (mut head, mut body) = response.into_parts();
    answer::secure(&mut head.headers);
    if head.status != StatusCode::NO_CONTENT {
        head.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    if is_head {
        body.clear();
    }
    let mut response = warp::reply::Response::new(body.into());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<()> {
        let echo: Handler<()> = |_, request| Box::pin(async move { Ok(answer::json(StatusCode::OK, &request.places)) });
        let routes = vec![
            Route::get("/fhir/Patient", echo),
            Route::get("/fhir/Patient/{id}", echo),
            Route::post("/fhir/Patient", echo),
        ];
        let second = Duration::from_secs(1);
        Table::new(
            routes,
            Arc::new(()),
            Bounds {
                body_bytes_max: 4,
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
        let table = table();
        let body =
            |parts: &'static [&'static str]| futures::stream::iter(parts.iter().map(|p| Ok::<_, ()>(p.as_bytes())));
        assert_eq!(
            table
                .collect(&HeaderMap::new(), body(&["ab", "cd"]))
                .await
                .expect("fits"),
            "abcd"
        );
        assert_eq!(
            table
                .collect(&HeaderMap::new(), body(&["ab", "cde"]))
                .await
                .expect_err("five")
                .status(),
            413
        );
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(5));
        assert_eq!(
            table
                .collect(&headers, body(&[]))
                .await
                .expect_err("announced")
                .status(),
            413
        );
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(
            table.collect(&headers, body(&[])).await.expect_err("encoded").status(),
            415
        );
    }
}
