-- What `sft/<condition>` must say, from the rows of `sequences` and the catalogue, example by example.
-- `positions` has the places of all rows: user_id, line, k, item, ts, session, request, visible, role, owned.
-- `catalogue` has a line for each item and value; `carried` says who carries what, when. `log` are the events.
WITH copies AS (
    SELECT *, row_number() OVER (PARTITION BY event_date, event_id ORDER BY source, position, action) AS copy
    FROM log
),
-- An event is fit if all records of it that stand in the same place are. These logs name every event by its item.
fit AS (
    SELECT f.item_id, bool_and({fit}) AS fit
    FROM copies f JOIN log c ON f.event_date = c.event_date AND f.event_id = c.event_id AND f.source = c.source
         AND f.position = c.position AND f.ts = c.ts AND f.user_id = c.user_id AND f.item_id = c.item_id
         AND f.request_id IS NOT DISTINCT FROM c.request_id
    WHERE f.copy = 1 AND {wanted}
    GROUP BY f.item_id
),
carried AS ({carried}),
pools AS ({pools}),
targets AS (
    SELECT p.user_id, p.line, p.k, p.item, p.ts, p.visible, p.role, c.value,
           count(*) OVER (PARTITION BY p.user_id, p.line, p.k) AS alternatives
    FROM positions p JOIN carried c ON p.item = c.item AND p.ts = c.ts
    WHERE p.owned AND p.role IN (1, 2, 3)
),
histories AS (
    SELECT t.user_id, t.line, t.k, t.value,
           array_agg(h.k ORDER BY h.k) AS places,
           array_agg(m.value IS NOT NULL ORDER BY h.k) AS matches,
           sum(CASE WHEN m.value IS NOT NULL AND h.k < t.visible THEN 1 ELSE 0 END) AS seen
    FROM targets t JOIN positions h ON t.user_id = h.user_id AND t.line = h.line AND h.k < t.k
         LEFT JOIN carried m ON m.item = h.item AND m.ts = h.ts AND m.value = t.value
    GROUP BY t.user_id, t.line, t.k, t.value
)
SELECT t.user_id, t.line, t.k, t.value, t.alternatives, t.role, t.visible, t.item, t.ts, h.matches
FROM targets t
     LEFT JOIN histories h ON t.user_id = h.user_id AND t.line = h.line AND t.k = h.k AND t.value = h.value
     LEFT JOIN pools p ON p.value = t.value
     LEFT JOIN fit f ON f.item_id = t.item
WHERE t.role <> 1 OR (f.fit AND coalesce(p.pool, 0) >= {min_pool} AND coalesce(h.seen, 0) >= {min_history})
ORDER BY t.user_id, t.line, t.k, t.value
