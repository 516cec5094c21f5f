-- What `sequences` must say about a log, event by event, from the definitions alone.
-- `log` has the columns of `events` with ts in milliseconds, the tie key, and the hashes as numbers in [0, 1).
-- All of its dates lie within `events.dedup_days` of each other.
WITH copies AS (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY source, position, action) AS copy
    FROM log
),
kept AS (
    SELECT * FROM copies WHERE copy = 1 AND {actions}
),
ordered AS (
    SELECT *,
           row_number() OVER (PARTITION BY user_id ORDER BY ts, tie, event_id_tie, source, position) - 1 AS t,
           count(*) OVER (PARTITION BY user_id) AS n
    FROM kept
),
gaps AS (
    SELECT *,
           ts - lag(ts) OVER (PARTITION BY user_id ORDER BY t) AS gap,
           lag(request_id) OVER (PARTITION BY user_id ORDER BY t) AS before
    FROM ordered
),
runs AS (
    SELECT *,
           sum(CASE WHEN gap > {session_gap} THEN 1 ELSE 0 END) OVER (PARTITION BY user_id ORDER BY t) AS session,
           CASE WHEN request_id IS NOT NULL THEN -1
                ELSE sum(CASE WHEN t > 0 AND before IS NULL AND gap <= {batch_gap} THEN 0 ELSE 1 END)
                     OVER (PARTITION BY user_id ORDER BY t) END AS run
    FROM gaps
),
batches AS (
    SELECT *, min(t) OVER (PARTITION BY user_id, request_id, run) AS first_t FROM runs
),
numbered AS (
    SELECT *, dense_rank() OVER (PARTITION BY user_id ORDER BY first_t) - 1 AS request FROM batches
),
seen AS (
    SELECT i.user_id, i.t,
           sum(CASE WHEN j.t < i.t AND ({off} OR (j.ts < i.ts - {margin}
                    AND (i.request_id IS NULL OR j.t < i.first_t))) THEN 1 ELSE 0 END) AS visible
    FROM numbered i JOIN numbered j ON i.user_id = j.user_id
    GROUP BY i.user_id, i.t
),
held_out AS (
    SELECT numbered.*, seen.visible, {role} AS held
    FROM numbered JOIN seen ON numbered.user_id = seen.user_id AND numbered.t = seen.t
)
SELECT user_id, t, item_id, ts, session, request, visible,
       CASE WHEN held = 0 AND event_unit < {sft_share} THEN 1 ELSE held END AS role
FROM held_out
ORDER BY user_id, t
