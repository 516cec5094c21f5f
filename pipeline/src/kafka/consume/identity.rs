//! Identifies the topic and the cluster behind a name.
//!
//! A topic that is deleted and created again has the same name and begins again with offset 0; so may a topic of that name
//! in another cluster. Brokers assign an id to each topic when it is created, and to each cluster.

use std::ffi::{CStr, CString};
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::types::{RDKafka, RDKafkaRespErr};

/// The ids of a topic and its cluster; empty if the brokers do not report them, as old brokers and imitations do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicIdentity {
    cluster: String,
    topic: String,
    /// Number of topics of this name that were read into the table before this one.
    before: u32,
}

impl TopicIdentity {
    /// The id of a topic that is the first of its name.
    pub(super) fn new(cluster: &str, topic: &str) -> Self {
        Self { cluster: cluster.into(), topic: topic.into(), before: 0 }
    }

    /// Parses a table property ([`Self::property`]).
    pub(super) fn from_property(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let mut part = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=');
        let (cluster, topic) = (part("cluster")?.to_owned(), part("topic")?.to_owned());
        Some(Self {
            cluster,
            topic,
            before: part("before").and_then(|before| before.parse().ok()).unwrap_or(0),
        })
    }

    /// Whether the two are one topic, as far as both are known.
    pub(super) fn is(&self, other: &Self) -> bool {
        let same = |one: &str, other: &str| one.is_empty() || other.is_empty() || one == other;
        same(&self.cluster, &other.cluster) && same(&self.topic, &other.topic)
    }

    /// Whether this answer lacks the topic's id although the answer `before` had it. A missing id does not mean the same topic.
    pub(super) fn says_less_than(&self, before: &Self) -> bool {
        self.topic.is_empty() && !before.topic.is_empty()
    }

    /// This topic as the successor of `other`, a topic of the same name.
    pub(super) fn after(&self, other: &Self) -> Self {
        Self { before: other.before + 1, ..self.clone() }
    }

    /// The same topic with the number of predecessors that `stored` has; missing ids are taken from `stored`.
    pub(super) fn known_as(&self, stored: &Self) -> Self {
        let or = |now: &String, before: &String| if now.is_empty() { before.clone() } else { now.clone() };
        Self {
            cluster: or(&self.cluster, &stored.cluster),
            topic: or(&self.topic, &stored.topic),
            before: stored.before,
        }
    }

    /// Number of earlier topics of this name, which distinguishes this topic's messages from theirs; `None` for the first.
    pub(super) fn generation(&self) -> Option<u32> {
        (self.before > 0).then_some(self.before)
    }

    /// The identity as a table property.
    pub(super) fn property(&self) -> String {
        let Self { cluster, topic, before } = self;
        match before {
            0 => format!("cluster={cluster} topic={topic}"),
            _ => format!("cluster={cluster} topic={topic} before={before}"),
        }
    }

    fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.topic.is_empty()
    }
}

impl fmt::Display for TopicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |text: &'_ str| if text.is_empty() { "unknown".to_owned() } else { format!("`{text}`") };
        write!(f, "topic id {}, cluster id {}", known(&self.topic), known(&self.cluster))
    }
}

/// Asks the brokers of `client` for the ids; `None` if they report neither.
pub(super) fn ask(client: *mut RDKafka, topic: &str, patience: Duration) -> Option<TopicIdentity> {
    let ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let identity = TopicIdentity::new(
        &cluster_id(client, ms).unwrap_or_default(),
        &topic_id(client, topic, ms).unwrap_or_default(),
    );
    (!identity.is_empty()).then_some(identity)
}

fn cluster_id(client: *mut RDKafka, ms: i32) -> Option<String> {
    // SAFETY: the client is alive, and the text is valid until it is freed.
    unsafe {
        let text = NonNull::new(rd::rd_kafka_clusterid(client, ms))?;
        let id = CStr::from_ptr(text.as_ptr()).to_str().ok().map(str::to_owned);
        rd::rd_kafka_mem_free(client, text.as_ptr().cast());
        id
    }
}

/// An object of librdkafka with the function that destroys it.
struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    fn new(pointer: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        NonNull::new(pointer).map(|pointer| Self(pointer, destroy))
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the matching constructor, and it is destroyed only here.
        unsafe { (self.1)(self.0.as_ptr()) }
    }
}

fn topic_id(client: *mut RDKafka, topic: &str, ms: i32) -> Option<String> {
    let name = CString::new(topic).ok()?;
    let mut names = [name.as_ptr()];
    // SAFETY: every pointer comes from the preceding call and lives until the end of this block, where they are destroyed in
    // the order that librdkafka requires; the array holds one name that ends with 0.
    unsafe {
        let topics = Owned::new(
            rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1),
            rd::rd_kafka_TopicCollection_destroy,
        )?;
        let options = Owned::new(
            rd::rd_kafka_AdminOptions_new(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS),
            rd::rd_kafka_AdminOptions_destroy,
        )?;
        rd::rd_kafka_AdminOptions_set_request_timeout(options.get(), ms, std::ptr::null_mut(), 0);
        let queue = Owned::new(rd::rd_kafka_queue_new(client), rd::rd_kafka_queue_destroy)?;
        rd::rd_kafka_DescribeTopics(client, topics.get(), options.get(), queue.get());
        let event = Owned::new(rd::rd_kafka_queue_poll(queue.get(), ms), rd::rd_kafka_event_destroy)?;
        if rd::rd_kafka_event_error(event.get()) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let result = rd::rd_kafka_event_DescribeTopics_result(event.get());
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let described = rd::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if described.is_null() || count == 0 {
            return None;
        }
        let described = *described;
        let error = rd::rd_kafka_TopicDescription_error(described);
        if !error.is_null() && rd::rd_kafka_error_code(error) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let id = rd::rd_kafka_TopicDescription_topic_id(described);
        if id.is_null()
            || (rd::rd_kafka_Uuid_most_significant_bits(id) == 0
                && rd::rd_kafka_Uuid_least_significant_bits(id) == 0)
        {
            return None;
        }
        let text = NonNull::new(rd::rd_kafka_Uuid_base64str(id).cast_mut())?;
        CStr::from_ptr(text.as_ptr()).to_str().ok().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_says_which_topic_it_was() {
        let one = TopicIdentity::new("c", "t1");
        let other = TopicIdentity::new("c", "t2").after(&one);
        for identity in [&one, &other] {
            assert_eq!(TopicIdentity::from_property(&identity.property()).as_ref(), Some(identity));
        }
        assert_eq!(
            (one.generation(), other.generation(), other.after(&other).generation()),
            (None, Some(1), Some(2))
        );
        assert!(!one.is(&other) && other.is(&TopicIdentity::new("c", "t2")));
        assert!(!one.is(&TopicIdentity::new("another", "t1")));
        assert_eq!(TopicIdentity::from_property("something else"), None);
    }

    #[test]
    fn what_is_not_known_is_no_difference() {
        let (known, half) = (TopicIdentity::new("c", "t"), TopicIdentity::new("c", ""));
        assert!(known.is(&half) && half.is(&known));
        assert!(half.says_less_than(&known) && !known.says_less_than(&half) && !half.says_less_than(&half));
        assert_eq!(half.known_as(&known), known);
        assert_eq!(half.to_string(), "topic id unknown, cluster id `c`");
    }
}
