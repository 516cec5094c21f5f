//! What columns of logs and catalogues are usually called.

/// What a column may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Item,
    Time,
    Request,
    RequestTime,
    Action,
    Value,
    EventId,
    Title,
    Release,
    Active,
}

/// Names of a role by strength: the first list names nothing else; the second also names other things.
struct Names {
    sure: &'static [&'static str],
    likely: &'static [&'static str],
}

impl Role {
    fn names(self) -> Names {
        let (sure, likely): (&[&str], &[&str]) = match self {
            Self::User => (
                &[
                    "userid",
                    "user",
                    "uid",
                    "customerid",
                    "customer",
                    "memberid",
                    "member",
                    "reviewerid",
                    "accountid",
                    "visitorid",
                    "profileid",
                    "buyerid",
                    "shopperid",
                    "readerid",
                    "listenerid",
                    "playerid",
                    "subscriberid",
                    "userno",
                    "userhash",
                    "useruuid",
                    "usernumber",
                    "personid",
                    "clientid",
                    "consumerid",
                ],
                &[
                    "sessionid",
                    "session",
                    "cookieid",
                    "deviceid",
                    "anonymousid",
                    "username",
                    "account",
                    "client",
                    "visitor",
                ],
            ),
            Self::Item => (
                &[
                    "itemid",
                    "item",
                    "iid",
                    "movieid",
                    "movie",
                    "productid",
                    "product",
                    "asin",
                    "parentasin",
                    "videoid",
                    "trackid",
                    "songid",
                    "newsid",
                    "articleid",
                    "bookid",
                    "isbn",
                    "contentid",
                    "sku",
                    "skuid",
                    "documentid",
                    "docid",
                    "postid",
                    "appid",
                    "gameid",
                    "businessid",
                    "poiid",
                    "venueid",
                    "showid",
                    "episodeid",
                    "listingid",
                    "goodsid",
                    "photoid",
                    "recipeid",
                    "offerid",
                    "adid",
                    "artistid",
                    "albumid",
                    "itemno",
                ],
                &[
                    "article",
                    "news",
                    "video",
                    "track",
                    "song",
                    "book",
                    "content",
                    "document",
                    "impression",
                    "placeid",
                ],
            ),
            Self::Time => (
                &[
                    "timestamp",
                    "ts",
                    "time",
                    "datetime",
                    "eventtime",
                    "eventtimestamp",
                    "eventts",
                    "unixreviewtime",
                    "timems",
                    "timestampms",
                    "unixtime",
                    "impressiontime",
                    "clicktime",
                    "actiontime",
                    "interactiontime",
                    "playedat",
                    "viewedat",
                    "watchedat",
                    "occurredat",
                    "ratedat",
                    "tdat",
                    "logtime",
                    "servertime",
                    "eventdatetime",
                    "reviewtime",
                    "eventdate",
                    "purchasedate",
                    "orderdate",
                    "clickedat",
                    "purchasedat",
                    "timestamputc",
                ],
                &["date", "createdat", "created", "day", "when", "createtime", "at"],
            ),
            Self::Request => (
                &[
                    "requestid",
                    "reqid",
                    "impressionid",
                    "impid",
                    "searchid",
                    "queryid",
                    "slateid",
                    "pageviewid",
                ],
                &[],
            ),
            Self::RequestTime => (&["requestts", "requesttime", "requesttimestamp", "servedat"], &[]),
            Self::Action => (
                &[
                    "action",
                    "actiontype",
                    "eventtype",
                    "event",
                    "behavior",
                    "behaviour",
                    "behaviortype",
                    "behaviourtype",
                    "interaction",
                    "interactiontype",
                    "eventname",
                    "activity",
                    "activitytype",
                ],
                &["type", "kind"],
            ),
            Self::Value => (
                &[
                    "rating",
                    "score",
                    "star",
                    "starrating",
                    "overall",
                    "value",
                    "playtimems",
                    "playtime",
                    "watchtime",
                    "watchratio",
                    "dwelltime",
                    "readtime",
                    "listencount",
                    "playcount",
                    "listeningtime",
                    "playedratio",
                    "quantity",
                    "qty",
                    "playedratiopct",
                ],
                &["count", "weight"],
            ),
            Self::EventId => (&["eventid", "eventuuid", "interactionid"], &["logid"]),
            Self::Title => (
                &[
                    "title",
                    "itemname",
                    "itemtitle",
                    "productname",
                    "producttitle",
                    "movietitle",
                    "headline",
                    "trackname",
                    "songname",
                    "newstitle",
                    "booktitle",
                    "prodname",
                    "videotitle",
                    "articletitle",
                ],
                &["name", "caption"],
            ),
            Self::Release => (
                &[
                    "releasets",
                    "releasedate",
                    "releasetime",
                    "releasedat",
                    "releasetimestamp",
                    "publishedtime",
                    "publishedat",
                    "publishdate",
                    "publisheddate",
                    "publicationdate",
                    "publishtime",
                    "uploaddt",
                    "uploaddate",
                    "uploadtime",
                    "firstavailable",
                    "launchdate",
                ],
                &[],
            ),
            Self::Active => (&["active", "isactive"], &[]),
        };
        Names { sure, likely }
    }

    /// How surely a column of this name has the role: 0 is surest; none if the name does not say it.
    pub(super) fn rank(self, column: &str) -> Option<u8> {
        let name = plain(column);
        let Names { sure, likely } = self.names();
        if sure.contains(&name.as_str()) {
            return Some(0);
        }
        likely.contains(&name.as_str()).then_some(1)
    }
}

/// Flags that say what the user did, strongest first.
pub(super) const FLAGS: [&str; 5] = ["isclick", "click", "clicked", "label", "purchased"];

/// Columns of catalogues that group items, best first.
pub(super) const GROUPS: [&str; 34] = [
    "genre",
    "category",
    "categorystr",
    "maincategory",
    "class",
    "brand",
    "subcategory",
    "artist",
    "artistid",
    "author",
    "authorid",
    "publisher",
    "language",
    "topic",
    "tag",
    "store",
    "type",
    "videotype",
    "department",
    "departmentname",
    "producttypename",
    "productgroupname",
    "label",
    "series",
    "studio",
    "color",
    "colour",
    "albumid",
    "musicid",
    "market",
    "country",
    "mood",
    "style",
    "format",
];

/// Whether a name says that the column holds several values.
pub(super) fn is_plural(column: &str) -> bool {
    let words = words(column);
    let many =
        ["list", "seq", "sequence", "history", "impressions", "items", "ids", "basket", "inview", "clicked"];
    words.iter().any(|word| many.contains(&word.as_str()))
        || words.last().is_some_and(|word| word.ends_with('s'))
}

/// Whether a name says that a list holds what the user was shown.
pub(super) fn is_shown(column: &str) -> bool {
    let shown = [
        "inview",
        "impression",
        "impressions",
        "shown",
        "exposed",
        "displayed",
        "candidates",
        "slate",
        "seen",
    ];
    words(column).iter().any(|word| shown.contains(&word.as_str()))
}

/// Whether a name says that a list holds what the user chose.
pub(super) fn is_chosen(column: &str) -> bool {
    let chosen = ["clicked", "clicks", "chosen", "selected", "purchased", "bought", "played"];
    words(column).iter().any(|word| chosen.contains(&word.as_str()))
}

/// Whether a name says that the column holds what happened before.
pub(super) fn is_past(column: &str) -> bool {
    words(column).iter().any(|word| ["history", "past", "previous", "next"].contains(&word.as_str()))
}

/// The words of a name in lower case: `userId`, `user_id` and `USER ID` are `user`, `id`.
fn words(column: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut begins, mut was_lower) = (true, false);
    for c in column.chars() {
        if !c.is_alphanumeric() {
            (begins, was_lower) = (true, false);
            continue;
        }
        if begins || (was_lower && c.is_uppercase()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.extend(c.to_lowercase());
        }
        (begins, was_lower) = (false, c.is_lowercase());
    }
    words
}

/// A name without case, marks, plural and words that only say how values are stored.
pub(super) fn plain(column: &str) -> String {
    let mut words = words(column);
    let storage = ["fixed", "list", "seq", "sequence", "inview", "clicked"];
    while words.len() > 1 && words.last().is_some_and(|word| storage.contains(&word.as_str())) {
        words.pop();
    }
    if let Some(last) = words.last_mut() {
        let singular = match last.strip_suffix("ies") {
            Some(stem) if stem.len() > 2 && last != "series" => Some(format!("{stem}y")),
            Some(_) => None,
            None => match last.strip_suffix('s') {
                Some(stem) if stem.len() > 1 && !stem.ends_with(['s', 'u', 'i', 'a']) => {
                    Some(stem.to_owned())
                }
                _ => None,
            },
        };
        // `ts`, `news` and `class` are no plurals.
        if let Some(singular) = singular.filter(|_| !["ts", "news", "asins"].contains(&last.as_str())) {
            *last = singular;
        }
    }
    words.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_their_writing() {
        for (name, expected) in [
            ("userId", "userid"),
            ("user_id", "userid"),
            ("USER ID", "userid"),
            ("user.id", "userid"),
            ("genres", "genre"),
            ("categories", "category"),
            ("article_ids_inview", "articleid"),
            ("article_id_fixed", "articleid"),
            ("ts", "ts"),
            ("newsID", "newsid"),
            ("class", "class"),
            ("reviewerID", "reviewerid"),
            ("UnixReviewTime", "unixreviewtime"),
            ("series", "series"),
            ("news", "news"),
            ("status", "status"),
        ] {
            assert_eq!(plain(name), expected, "{name}");
        }
        assert_eq!(Role::User.rank("Customer-ID"), Some(0));
        assert_eq!(Role::User.rank("session_id"), Some(1));
        assert_eq!(Role::Item.rank("parent_asin"), Some(0));
        assert_eq!(Role::Time.rank("birthday"), None);
    }
}
