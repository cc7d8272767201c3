CREATE TABLE IF NOT EXISTS raw.quarantine
(
    `topic` String COMMENT 'Topic of the record',
    `source_partition` UInt16 COMMENT 'Partition of the record',
    `source_offset` UInt64 COMMENT 'Offset of the record',
    `last_offset` UInt64 COMMENT 'Last offset, if a whole batch could not be opened',
    `stage` String COMMENT 'DECODE or VALIDATE',
    `cause` String COMMENT 'What is wrong with it',
    `key` Nullable(String) COMMENT 'Key, hexadecimal',
    `value` Nullable(String) COMMENT 'Value, hexadecimal',
    `published_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the broker stored the record',
    `arrived_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the dead letter was stored'
)
ENGINE = ReplacingMergeTree(arrived_at)
ORDER BY (topic, source_partition, source_offset)
COMMENT 'Records that could not be processed';

CREATE TABLE IF NOT EXISTS raw.redriven
(
    `topic` String COMMENT 'Topic of the record',
    `source_partition` UInt16 COMMENT 'Partition of the record',
    `source_offset` UInt64 COMMENT 'Offset of the record',
    `to_partition` UInt16 COMMENT 'Partition where it is now',
    `to_offset` UInt64 COMMENT 'Offset where it is now',
    `corrected` Bool COMMENT 'Its values were corrected; else its bytes are the same',
    `redriven_at` DateTime64(3, 'Asia/Shanghai') DEFAULT now64(3) COMMENT 'When'
)
ENGINE = ReplacingMergeTree
ORDER BY (topic, source_partition, source_offset)
COMMENT 'Quarantined records that were published again';

CREATE TABLE IF NOT EXISTS raw.control
(
    `topic` String COMMENT 'Topic of the offsets',
    `source_partition` UInt16 COMMENT 'Partition of the offsets',
    `source_offset` UInt64 COMMENT 'First offset without a record that counts',
    `last_offset` UInt64 COMMENT 'Last offset without a record that counts'
)
ENGINE = ReplacingMergeTree
ORDER BY (topic, source_partition, source_offset, last_offset)
COMMENT 'Offsets without an event: markers of transactions, aborted and compacted records, ticks';

ALTER TABLE raw.control
    (MODIFY COMMENT 'Offsets without an event: markers of transactions, aborted and compacted records, ticks');

CREATE TABLE IF NOT EXISTS raw.withdrawn
(
    `publication` String COMMENT 'Which publication',
    `topic` String COMMENT 'Its feed',
    `source_partition` UInt16 COMMENT 'Partition of the offsets',
    `withdrawn_by` SimpleAggregateFunction(any, String) COMMENT 'Who withdrew it',
    `offsets` AggregateFunction(groupBitmap, UInt64) COMMENT 'Offsets whose rows were taken away, as a set',
    `withdrawn_at` SimpleAggregateFunction(min, DateTime64(3, 'Asia/Shanghai')) DEFAULT now64(3) COMMENT 'When'
)
ENGINE = AggregatingMergeTree
ORDER BY (topic, source_partition, publication)
COMMENT 'Rows of publications that were withdrawn';

CREATE TABLE IF NOT EXISTS raw.layout
(
    `version` UInt32,
    `noted_at` DateTime64(3, 'Asia/Shanghai') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (version)
COMMENT 'Versions of the tables and views, as citystream init brought them to';

CREATE TABLE IF NOT EXISTS raw.shown
(
    `feed` String COMMENT 'Feed',
    `aggregate` String COMMENT 'Aggregate, and view in city',
    `topic` String COMMENT 'Topic, and table in raw, of the version it shows',
    `noted_at` DateTime64(3, 'Asia/Shanghai') DEFAULT now64(3) COMMENT 'When'
)
ENGINE = ReplacingMergeTree
ORDER BY (feed, aggregate)
COMMENT 'Which windows the view of each aggregate shows; the row that came last counts';

CREATE TABLE IF NOT EXISTS raw.progress
(
    `aggregate` String,
    `source_partition` UInt16,
    `watermark` SimpleAggregateFunction(max, Int64)
)
ENGINE = AggregatingMergeTree
ORDER BY (aggregate, source_partition)
COMMENT 'Maximum of event time whose windows are stored [ms]';

CREATE TABLE IF NOT EXISTS raw.ledger
(
    `topic` String COMMENT 'Topic of the offsets',
    `source_partition` UInt16 COMMENT 'Partition of the offsets',
    `kind` Enum8('received' = 1, 'quarantined' = 2, 'control' = 3) COMMENT 'As rows of the feed, as dead letters, or as offsets of the log itself',
    `block` UInt64 COMMENT 'The first offset of the block / 65536',
    `offsets` AggregateFunction(groupBitmap, UInt32) COMMENT 'Set of offsets, less block * 65536',
    `minutes` SimpleAggregateFunction(maxMap, Map(UInt32, UInt64)) COMMENT 'Of minutes since 1970: the offset behind the last one * 65536 + the ms in the minute',
    `since` SimpleAggregateFunction(min, Nullable(Int64)) COMMENT 'When the first was published [ms]',
    `until` SimpleAggregateFunction(max, Nullable(Int64)) COMMENT 'When the last was published [ms]'
)
ENGINE = AggregatingMergeTree
ORDER BY (topic, source_partition, block, kind)
COMMENT 'Which offsets arrived, as a set for each block of 65536 offsets';

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.quarantine_ledger TO raw.ledger
AS WITH
    bitmapBuild(range(toUInt32(65536))) AS whole_block,
    greatest(source_offset, block * 65536) - (block * 65536) AS first,
    least(last_offset + 1, (block + 1) * 65536) - (block * 65536) AS end,
    (end - first) = 65536 AS whole
SELECT
    topic,
    source_partition,
    'quarantined' AS kind,
    block,
    groupBitmapMergeState(if(whole, whole_block, bitmapBuild(range(toUInt32(first), toUInt32(if(whole, first, end)))))) AS offsets,
    maxMap(map(toUInt32(intDiv(toUnixTimestamp64Milli(published_at), 60000)), toUInt64(((least(last_offset + 1, (block + 1) * 65536)) * 65536) + (toUnixTimestamp64Milli(published_at) % 60000)))) AS minutes,
    min(toUnixTimestamp64Milli(published_at)) AS since,
    max(toUnixTimestamp64Milli(published_at)) AS until
FROM raw.quarantine
ARRAY JOIN range(intDiv(source_offset, 65536), intDiv(last_offset, 65536) + 1) AS block
GROUP BY
    topic,
    source_partition,
    block;

ALTER TABLE raw.quarantine_ledger
    (MODIFY QUERY
    WITH
        bitmapBuild(range(toUInt32(65536))) AS whole_block,
        greatest(source_offset, block * 65536) - (block * 65536) AS first,
        least(last_offset + 1, (block + 1) * 65536) - (block * 65536) AS end,
        (end - first) = 65536 AS whole
    SELECT
        topic,
        source_partition,
        'quarantined' AS kind,
        block,
        groupBitmapMergeState(if(whole, whole_block, bitmapBuild(range(toUInt32(first), toUInt32(if(whole, first, end)))))) AS offsets,
        maxMap(map(toUInt32(intDiv(toUnixTimestamp64Milli(published_at), 60000)), toUInt64(((least(last_offset + 1, (block + 1) * 65536)) * 65536) + (toUnixTimestamp64Milli(published_at) % 60000)))) AS minutes,
        min(toUnixTimestamp64Milli(published_at)) AS since,
        max(toUnixTimestamp64Milli(published_at)) AS until
    FROM raw.quarantine
    ARRAY JOIN range(intDiv(source_offset, 65536), intDiv(last_offset, 65536) + 1) AS block
    GROUP BY
        topic,
        source_partition,
        block);

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.control_ledger TO raw.ledger
AS WITH
    bitmapBuild(range(toUInt32(65536))) AS whole_block,
    greatest(source_offset, block * 65536) - (block * 65536) AS first,
    least(last_offset + 1, (block + 1) * 65536) - (block * 65536) AS end,
    (end - first) = 65536 AS whole
SELECT
    topic,
    source_partition,
    'control' AS kind,
    block,
    groupBitmapMergeState(if(whole, whole_block, bitmapBuild(range(toUInt32(first), toUInt32(if(whole, first, end)))))) AS offsets
FROM raw.control
ARRAY JOIN range(intDiv(source_offset, 65536), intDiv(last_offset, 65536) + 1) AS block
GROUP BY
    topic,
    source_partition,
    block;

ALTER TABLE raw.control_ledger
    (MODIFY QUERY
    WITH
        bitmapBuild(range(toUInt32(65536))) AS whole_block,
        greatest(source_offset, block * 65536) - (block * 65536) AS first,
        least(last_offset + 1, (block + 1) * 65536) - (block * 65536) AS end,
        (end - first) = 65536 AS whole
    SELECT
        topic,
        source_partition,
        'control' AS kind,
        block,
        groupBitmapMergeState(if(whole, whole_block, bitmapBuild(range(toUInt32(first), toUInt32(if(whole, first, end)))))) AS offsets
    FROM raw.control
    ARRAY JOIN range(intDiv(source_offset, 65536), intDiv(last_offset, 65536) + 1) AS block
    GROUP BY
        topic,
        source_partition,
        block);

CREATE TABLE IF NOT EXISTS raw.toy
(
    `event_id` UUID COMMENT 'UUID of the event; with key and event time it is the event\'s identity',
    `device_id` String COMMENT 'Device',
    `observed_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'Event time',
    `began_at` Nullable(DateTime64(3, 'Asia/Shanghai')) DEFAULT fromUnixTimestamp64Milli(JSONExtract(undeclared, 'began_at', 'Nullable(Int64)'), 'Asia/Shanghai') COMMENT 'Begin of the period',
    `mood` String COMMENT 'Mood of the device',
    `level` Int32 COMMENT 'Level [1]',
    `wait` Nullable(Int32) DEFAULT JSONExtract(undeclared, 'wait', 'Nullable(Int32)') COMMENT 'How long someone waited [ms]',
    `load` Nullable(Float64) DEFAULT JSONExtract(undeclared, 'load', 'Nullable(Float64)') COMMENT 'Load [1]',
    `weight` Float64 COMMENT 'Weight [kg]',
    `open` Nullable(Bool) DEFAULT JSONExtract(undeclared, 'open', 'Nullable(Bool)') COMMENT 'Whether it is open',
    `built` Nullable(Date32) DEFAULT toDate32(JSONExtract(undeclared, 'built', 'Nullable(Int32)')) COMMENT 'Day it was built',
    `note` Nullable(String) DEFAULT JSONExtract(undeclared, 'note', 'Nullable(String)') COMMENT 'Remark',
    `place_longitude` Nullable(Float64) DEFAULT JSONExtract(undeclared, 'place_longitude', 'Nullable(Float64)') COMMENT 'Where it happened; null when unknown: longitude, WGS 84 [deg]',
    `place_latitude` Nullable(Float64) DEFAULT JSONExtract(undeclared, 'place_latitude', 'Nullable(Float64)') COMMENT 'Where it happened; null when unknown: latitude, WGS 84 [deg]',
    `source_partition` UInt16 COMMENT 'Partition, numbered through all topics the feed had',
    `source_offset` UInt64 COMMENT 'Offset in the partition',
    `arrived_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the broker stored the record',
    `seen_before` Int64 COMMENT 'Maximum of event time in the partition before this record [ms]; 9223372036854775807 if its topic does not count it',
    `undeclared` String COMMENT 'Fields of another schema version than the sink\'s, as JSON',
    `late` UInt8 ALIAS (((toUnixTimestamp64Milli(observed_at) - positiveModulo(toUnixTimestamp64Milli(observed_at), 4000)) + 9000) <= seen_before) OR (((toUnixTimestamp64Milli(observed_at) - positiveModulo(toUnixTimestamp64Milli(observed_at), 5000)) + 10000) <= seen_before) COMMENT 'Came after a window it belongs to was closed',
    `version` UInt64 MATERIALIZED bitNot(bitOr(bitShiftLeft(toUInt64(seen_before = 9223372036854775807), 63), bitOr(bitShiftLeft(toUInt64(source_partition), 47), source_offset))),
    INDEX late_rows (least(greatest(seen_before, 0), 4611686018427387904) - toUnixTimestamp64Milli(observed_at)) TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(arrived_at)
ORDER BY (device_id, observed_at, event_id)
TTL toDateTime(arrived_at) + toIntervalDay(400)
COMMENT 'Toy devices';

ALTER TABLE raw.toy
    (ADD COLUMN IF NOT EXISTS `event_id` UUID COMMENT 'UUID of the event; with key and event time it is the event\'s identity' FIRST ),
    (ADD COLUMN IF NOT EXISTS `device_id` String COMMENT 'Device' AFTER event_id),
    (ADD COLUMN IF NOT EXISTS `observed_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'Event time' AFTER device_id),
    (ADD COLUMN IF NOT EXISTS `began_at` Nullable(DateTime64(3, 'Asia/Shanghai')) DEFAULT fromUnixTimestamp64Milli(JSONExtract(undeclared, 'began_at', 'Nullable(Int64)'), 'Asia/Shanghai') COMMENT 'Begin of the period' AFTER observed_at),
    (ADD COLUMN IF NOT EXISTS `mood` String COMMENT 'Mood of the device' AFTER began_at),
    (ADD COLUMN IF NOT EXISTS `level` Int32 COMMENT 'Level [1]' AFTER mood),
    (ADD COLUMN IF NOT EXISTS `wait` Nullable(Int32) DEFAULT JSONExtract(undeclared, 'wait', 'Nullable(Int32)') COMMENT 'How long someone waited [ms]' AFTER level),
    (ADD COLUMN IF NOT EXISTS `load` Nullable(Float64) DEFAULT JSONExtract(undeclared, 'load', 'Nullable(Float64)') COMMENT 'Load [1]' AFTER wait),
    (ADD COLUMN IF NOT EXISTS `weight` Float64 COMMENT 'Weight [kg]' AFTER load),
    (ADD COLUMN IF NOT EXISTS `open` Nullable(Bool) DEFAULT JSONExtract(undeclared, 'open', 'Nullable(Bool)') COMMENT 'Whether it is open' AFTER weight),
    (ADD COLUMN IF NOT EXISTS `built` Nullable(Date32) DEFAULT toDate32(JSONExtract(undeclared, 'built', 'Nullable(Int32)')) COMMENT 'Day it was built' AFTER open),
    (ADD COLUMN IF NOT EXISTS `note` Nullable(String) DEFAULT JSONExtract(undeclared, 'note', 'Nullable(String)') COMMENT 'Remark' AFTER built),
    (ADD COLUMN IF NOT EXISTS `place_longitude` Nullable(Float64) DEFAULT JSONExtract(undeclared, 'place_longitude', 'Nullable(Float64)') COMMENT 'Where it happened; null when unknown: longitude, WGS 84 [deg]' AFTER note),
    (ADD COLUMN IF NOT EXISTS `place_latitude` Nullable(Float64) DEFAULT JSONExtract(undeclared, 'place_latitude', 'Nullable(Float64)') COMMENT 'Where it happened; null when unknown: latitude, WGS 84 [deg]' AFTER place_longitude),
    (ADD COLUMN IF NOT EXISTS `source_partition` UInt16 COMMENT 'Partition, numbered through all topics the feed had' AFTER place_latitude),
    (ADD COLUMN IF NOT EXISTS `source_offset` UInt64 COMMENT 'Offset in the partition' AFTER source_partition),
    (ADD COLUMN IF NOT EXISTS `arrived_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the broker stored the record' AFTER source_offset),
    (ADD COLUMN IF NOT EXISTS `seen_before` Int64 COMMENT 'Maximum of event time in the partition before this record [ms]; 9223372036854775807 if its topic does not count it' AFTER arrived_at),
    (ADD COLUMN IF NOT EXISTS `undeclared` String COMMENT 'Fields of another schema version than the sink\'s, as JSON' AFTER seen_before);

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.toy_ledger TO raw.ledger
AS SELECT
    'toy' AS topic,
    source_partition,
    'received' AS kind,
    intDiv(source_offset, 65536) AS block,
    groupBitmapState(toUInt32(source_offset % 65536)) AS offsets,
    maxMap(map(toUInt32(intDiv(toUnixTimestamp64Milli(arrived_at), 60000)), toUInt64(((source_offset + 1) * 65536) + (toUnixTimestamp64Milli(arrived_at) % 60000)))) AS minutes,
    min(toUnixTimestamp64Milli(arrived_at)) AS since,
    max(toUnixTimestamp64Milli(arrived_at)) AS until
FROM raw.toy
GROUP BY
    source_partition,
    block;

ALTER TABLE raw.toy_ledger
    (MODIFY QUERY
    SELECT
        'toy' AS topic,
        source_partition,
        'received' AS kind,
        intDiv(source_offset, 65536) AS block,
        groupBitmapState(toUInt32(source_offset % 65536)) AS offsets,
        maxMap(map(toUInt32(intDiv(toUnixTimestamp64Milli(arrived_at), 60000)), toUInt64(((source_offset + 1) * 65536) + (toUnixTimestamp64Milli(arrived_at) % 60000)))) AS minutes,
        min(toUnixTimestamp64Milli(arrived_at)) AS since,
        max(toUnixTimestamp64Milli(arrived_at)) AS until
    FROM raw.toy
    GROUP BY
        source_partition,
        block);

CREATE TABLE IF NOT EXISTS raw.toy_4s
(
    `device_id` String COMMENT 'Group key',
    `window_start` DateTime64(3, 'Asia/Shanghai') COMMENT 'Start of the window',
    `source_partition` UInt16 COMMENT 'Partition the part comes from',
    `since` UInt64 COMMENT 'Offset from which on the part counts; parts of several add up',
    `version` UInt64 COMMENT '2 x last offset counted in, + 1 if final',
    `events` Int64 COMMENT 'Events counted',
    `level_sum` Int64 COMMENT 'Partial sum',
    `load_low` Nullable(Int64) COMMENT 'Partial min',
    `load_high` Nullable(Int64) COMMENT 'Partial max',
    `load_sum` Int64 COMMENT 'Partial sum',
    `load_count` Int64 COMMENT 'Partial sum',
    `gain_over` Int64 COMMENT 'Partial sum',
    `gain_under` Int64 COMMENT 'Partial sum',
    `slope_over` Int64 COMMENT 'Partial sum',
    `slope_under` Int64 COMMENT 'Partial sum'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYear(window_start)
ORDER BY (device_id, window_start, source_partition, since)
TTL toDateTime(window_start) + toIntervalDay(400) RECOMPRESS CODEC(ZSTD(3))
COMMENT 'Toys by device';

CREATE TABLE IF NOT EXISTS raw.toy_5s_mood
(
    `mood` String COMMENT 'Group key',
    `device_id` String COMMENT 'Group key',
    `window_start` DateTime64(3, 'Asia/Shanghai') COMMENT 'Start of the window',
    `source_partition` UInt16 COMMENT 'Partition the part comes from',
    `since` UInt64 COMMENT 'Offset from which on the part counts; parts of several add up',
    `version` UInt64 COMMENT '2 x last offset counted in, + 1 if final',
    `events` Int64 COMMENT 'Events counted',
    `busy_sum` Int64 COMMENT 'Partial sum',
    `high_true` Int64 COMMENT 'Partial sum',
    `high_known` Int64 COMMENT 'Partial sum',
    `wait_histogram` Tuple(
        Array(Int32),
        Array(Int64)) COMMENT 'Buckets and counts',
    `delay_histogram` Tuple(
        Array(Int32),
        Array(Int64)) COMMENT 'Buckets and counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYear(window_start)
ORDER BY (mood, device_id, window_start, source_partition, since)
TTL toDateTime(window_start) + toIntervalDay(400) RECOMPRESS CODEC(ZSTD(3))
COMMENT 'Toys by mood';

CREATE OR REPLACE VIEW city.toy
(
    `event_id` UUID COMMENT 'UUID of the event; with key and event time it is the event\'s identity',
    `device_id` String COMMENT 'Device',
    `observed_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'Event time',
    `began_at` Nullable(DateTime64(3, 'Asia/Shanghai')) COMMENT 'Begin of the period',
    `mood` String COMMENT 'Mood of the device',
    `level` Int32 COMMENT 'Level [1]',
    `wait` Nullable(Int32) COMMENT 'How long someone waited [ms]',
    `load` Nullable(Float64) COMMENT 'Load [1]',
    `weight` Float64 COMMENT 'Weight [kg]',
    `open` Nullable(Bool) COMMENT 'Whether it is open',
    `built` Nullable(Date32) COMMENT 'Day it was built',
    `note` Nullable(String) COMMENT 'Remark',
    `place_longitude` Nullable(Float64) COMMENT 'Where it happened; null when unknown: longitude, WGS 84 [deg]',
    `place_latitude` Nullable(Float64) COMMENT 'Where it happened; null when unknown: latitude, WGS 84 [deg]',
    `source_partition` UInt16 COMMENT 'Partition, numbered through all topics the feed had',
    `source_offset` UInt64 COMMENT 'Offset in the partition',
    `arrived_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the broker stored the record'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'Toy devices'
AS SELECT
    event_id,
    device_id,
    observed_at,
    began_at,
    mood,
    level,
    wait,
    load,
    weight,
    open,
    built,
    note,
    place_longitude,
    place_latitude,
    source_partition,
    source_offset,
    arrived_at
FROM raw.toy
FINAL
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW city.toy_conflicts
(
    `event_id` UUID COMMENT 'UUID of the event; with key and event time it is the event\'s identity',
    `device_id` String COMMENT 'Device',
    `observed_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'Event time',
    `source_partition` UInt16 COMMENT 'Partition, numbered through all topics the feed had',
    `source_offset` UInt64 COMMENT 'Offset in the partition',
    `arrived_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the broker stored the record'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'Events of the last 24 hours, by arrival, that share an event_id under different device_id or observed_at; each of them counts'
AS SELECT
    event_id,
    device_id,
    observed_at,
    source_partition,
    source_offset,
    arrived_at
FROM raw.toy
WHERE (arrived_at > (now() - toIntervalHour(24))) AND (event_id IN (
    SELECT event_id
    FROM raw.toy
    WHERE arrived_at > (now() - toIntervalHour(24))
    GROUP BY event_id
    HAVING min(cityHash64(device_id, observed_at)) != max(cityHash64(device_id, observed_at))
    SETTINGS max_bytes_before_external_group_by = 500000000
))
ORDER BY
    event_id ASC,
    device_id ASC,
    observed_at ASC,
    source_offset ASC,
    source_partition ASC
LIMIT 1 BY
    event_id,
    device_id,
    observed_at
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW city.toy_4s
(
    `window_start` DateTime64(3, 'Asia/Shanghai') COMMENT 'Start of the window of 0:00:04',
    `device_id` String COMMENT 'Device',
    `events` Int64 COMMENT 'Events counted, repeats left out',
    `level` Nullable(Float64) COMMENT 'Level [1]',
    `load_min` Nullable(Float64) COMMENT 'Minimum of Load [1]',
    `load_max` Nullable(Float64) COMMENT 'Maximum of Load [1]',
    `load_mean` Nullable(Float64) COMMENT 'Mean of Load [1]',
    `gain` Nullable(Float64) COMMENT 'Gain [1]',
    `slope` Nullable(Float64) COMMENT 'Slope [1]',
    `final` Bool COMMENT 'No event in time can change the window any more',
    `as_of` DateTime64(3, 'Asia/Shanghai') COMMENT 'Event time up to which the numbers are complete'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'Toys by device'
AS WITH
    arrayMin(number -> (progress[number]), if(empty(arrayIntersect(partitions, range(toUInt16(0), toUInt16(1)))), range(toUInt16(0), toUInt16(1)), arrayIntersect(partitions, range(toUInt16(0), toUInt16(1))))) AS seen
SELECT
    window_start,
    device_id,
    events,
    level_sum AS level,
    (load_low / 100) AS load_min,
    (load_high / 100) AS load_max,
    ((toFloat64(load_sum) / nullIf(load_count, 0)) / 100) AS load_mean,
    (toFloat64(gain_over) / nullIf(gain_under, 0)) AS gain,
    (toFloat64(slope_over) / nullIf(slope_under, 0)) AS slope,
    CAST((toUnixTimestamp64Milli(window_start) + 9000) <= seen, 'Bool') AS final,
    fromUnixTimestamp64Milli(seen - 2000, 'Asia/Shanghai') AS as_of
FROM
(
    SELECT mapFromArrays(groupArray(source_partition), groupArray(watermark)) AS progress
    FROM
    (
        SELECT
            source_partition,
            max(p.watermark) AS watermark
        FROM raw.progress AS p
        WHERE aggregate = 'toy_4s'
        GROUP BY source_partition
    )
) AS progressed
CROSS JOIN
(
    SELECT
        device_id,
        window_start,
        sum(events) AS events,
        if(count(level_sum) = count(), sum(toInt128(level_sum)), NULL) AS level_sum,
        min(load_low) AS load_low,
        max(load_high) AS load_high,
        if(count(load_sum) = count(), sum(toInt128(load_sum)), NULL) AS load_sum,
        if(count(load_count) = count(), sum(toInt128(load_count)), NULL) AS load_count,
        if(count(gain_over) = count(), sum(toInt128(gain_over)), NULL) AS gain_over,
        if(count(gain_under) = count(), sum(toInt128(gain_under)), NULL) AS gain_under,
        if(count(slope_over) = count(), sum(toInt128(slope_over)), NULL) AS slope_over,
        if(count(slope_under) = count(), sum(toInt128(slope_under)), NULL) AS slope_under,
        groupUniqArray(source_partition) AS partitions
    FROM
    (
        SELECT
            device_id,
            window_start,
            source_partition,
            events,
            nullIf(level_sum, -9223372036854775808) AS level_sum,
            load_low AS load_low,
            load_high AS load_high,
            nullIf(load_sum, -9223372036854775808) AS load_sum,
            nullIf(load_count, -9223372036854775808) AS load_count,
            nullIf(gain_over, -9223372036854775808) AS gain_over,
            nullIf(gain_under, -9223372036854775808) AS gain_under,
            nullIf(slope_over, -9223372036854775808) AS slope_over,
            nullIf(slope_under, -9223372036854775808) AS slope_under
        FROM raw.toy_4s
        FINAL
        UNION ALL
        SELECT
            device_id,
            fromUnixTimestamp64Milli((toUnixTimestamp64Milli(observed_at) - positiveModulo(toUnixTimestamp64Milli(observed_at), 4000)), 'Asia/Shanghai') AS window_start,
            source_partition,
            toInt64(count()) AS events,
            sum(toInt128(ifNull(if(abs(floor((toFloat64(level) * 1) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(level) * 1) + 0.5)), NULL), 0))) AS level_sum,
            minOrNull(toInt64(if(abs(floor((toFloat64(load) * 100) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(load) * 100) + 0.5)), NULL))) AS load_low,
            maxOrNull(toInt64(if(abs(floor((toFloat64(load) * 100) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(load) * 100) + 0.5)), NULL))) AS load_high,
            sum(toInt128(ifNull(if(abs(floor((toFloat64(load) * 100) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(load) * 100) + 0.5)), NULL), 0))) AS load_sum,
            sum(toInt128(ifNull(if((if(abs(floor((toFloat64(load) * 100) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(load) * 100) + 0.5)), NULL) IS NOT NULL), 1, NULL), 0))) AS load_count,
            sum(toInt128(ifNull(if((level IS NOT NULL), if(abs(floor((toFloat64((load * level)) * 10) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64((load * level)) * 10) + 0.5)), NULL), NULL), 0))) AS gain_over,
            sum(toInt128(ifNull(if(((load * level) IS NOT NULL), if(abs(floor((toFloat64(level) * 10) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(level) * 10) + 0.5)), NULL), NULL), 0))) AS gain_under,
            sum(toInt128(ifNull(if(((level - 3) IS NOT NULL), if(abs(floor((toFloat64((toFloat64(load) / nullIf(wait, 0))) * 1000) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64((toFloat64(load) / nullIf(wait, 0))) * 1000) + 0.5)), NULL), NULL), 0))) AS slope_over,
            sum(toInt128(ifNull(if(((toFloat64(load) / nullIf(wait, 0)) IS NOT NULL), if(abs(floor((toFloat64((level - 3)) * 1000) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64((level - 3)) * 1000) + 0.5)), NULL), NULL), 0))) AS slope_under
        FROM raw.toy
        FINAL
        WHERE ((least(greatest(seen_before, 0), 4611686018427387904) - toUnixTimestamp64Milli(observed_at)) > 5000) AND (((toUnixTimestamp64Milli(observed_at) - positiveModulo(toUnixTimestamp64Milli(observed_at), 4000)) + 9000) <= seen_before)
        GROUP BY
            device_id,
            window_start,
            source_partition
    )
    GROUP BY
        device_id,
        window_start
    HAVING events > 0
) AS windows
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW city.toy_5s_mood
(
    `window_start` DateTime64(3, 'Asia/Shanghai') COMMENT 'Start of the window of 0:00:05',
    `mood` String COMMENT 'Mood of the device',
    `device_id` String COMMENT 'Device',
    `events` Int64 COMMENT 'Events counted, repeats left out',
    `busy` Nullable(Float64) COMMENT 'Busy ones [1]',
    `high` Nullable(Float64) COMMENT 'Share of high load [1]',
    `wait_p50` Nullable(Float64) COMMENT 'Quantile 0.5 of Wait, relative error at most 0.8% [s]',
    `wait_p90` Nullable(Float64) COMMENT 'Quantile 0.9 of Wait, relative error at most 0.8% [s]',
    `delay_p50` Nullable(Float64) COMMENT 'Quantile 0.5 of Delay, relative error at most 0.8% [ms]',
    `final` Bool COMMENT 'No event in time can change the window any more',
    `as_of` DateTime64(3, 'Asia/Shanghai') COMMENT 'Event time up to which the numbers are complete'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'Toys by mood'
AS WITH
    arrayMin(number -> (progress[number]), if(empty(arrayIntersect(partitions, range(toUInt16(0), toUInt16(1)))), range(toUInt16(0), toUInt16(1)), arrayIntersect(partitions, range(toUInt16(0), toUInt16(1))))) AS seen
SELECT
    window_start,
    mood,
    device_id,
    events,
    busy_sum AS busy,
    (toFloat64(high_true) / nullIf(high_known, 0)) AS high,
    (if(empty(tupleElement(wait_histogram, 1)), NULL, if((tupleElement(wait_histogram, 1)[arrayFirstIndex(r -> (r > floor(0.5 * ((arrayCumSum(tupleElement(wait_histogram, 2))[-1]) - 1))), arrayCumSum(tupleElement(wait_histogram, 2)))]) = -1, 0, reinterpretAsFloat64(bitShiftLeft(toUInt64((tupleElement(wait_histogram, 1)[arrayFirstIndex(r -> (r > floor(0.5 * ((arrayCumSum(tupleElement(wait_histogram, 2))[-1]) - 1))), arrayCumSum(tupleElement(wait_histogram, 2)))]) + 65472), 46) + 35184372088832))) / 1000) AS wait_p50,
    (if(empty(tupleElement(wait_histogram, 1)), NULL, if((tupleElement(wait_histogram, 1)[arrayFirstIndex(r -> (r > floor(0.9 * ((arrayCumSum(tupleElement(wait_histogram, 2))[-1]) - 1))), arrayCumSum(tupleElement(wait_histogram, 2)))]) = -1, 0, reinterpretAsFloat64(bitShiftLeft(toUInt64((tupleElement(wait_histogram, 1)[arrayFirstIndex(r -> (r > floor(0.9 * ((arrayCumSum(tupleElement(wait_histogram, 2))[-1]) - 1))), arrayCumSum(tupleElement(wait_histogram, 2)))]) + 65472), 46) + 35184372088832))) / 1000) AS wait_p90,
    (if(empty(tupleElement(delay_histogram, 1)), NULL, if((tupleElement(delay_histogram, 1)[arrayFirstIndex(r -> (r > floor(0.5 * ((arrayCumSum(tupleElement(delay_histogram, 2))[-1]) - 1))), arrayCumSum(tupleElement(delay_histogram, 2)))]) = -1, 0, reinterpretAsFloat64(bitShiftLeft(toUInt64((tupleElement(delay_histogram, 1)[arrayFirstIndex(r -> (r > floor(0.5 * ((arrayCumSum(tupleElement(delay_histogram, 2))[-1]) - 1))), arrayCumSum(tupleElement(delay_histogram, 2)))]) + 65472), 46) + 35184372088832))) / 1) AS delay_p50,
    CAST((toUnixTimestamp64Milli(window_start) + 10000) <= seen, 'Bool') AS final,
    fromUnixTimestamp64Milli(seen - 2000, 'Asia/Shanghai') AS as_of
FROM
(
    SELECT mapFromArrays(groupArray(source_partition), groupArray(watermark)) AS progress
    FROM
    (
        SELECT
            source_partition,
            max(p.watermark) AS watermark
        FROM raw.progress AS p
        WHERE aggregate = 'toy_5s_mood'
        GROUP BY source_partition
    )
) AS progressed
CROSS JOIN
(
    SELECT
        mood,
        device_id,
        window_start,
        sum(events) AS events,
        if(count(busy_sum) = count(), sum(toInt128(busy_sum)), NULL) AS busy_sum,
        if(count(high_true) = count(), sum(toInt128(high_true)), NULL) AS high_true,
        if(count(high_known) = count(), sum(toInt128(high_known)), NULL) AS high_known,
        sumMap(wait_histogram) AS wait_histogram,
        sumMap(delay_histogram) AS delay_histogram,
        groupUniqArray(source_partition) AS partitions
    FROM
    (
        SELECT
            mood,
            device_id,
            window_start,
            source_partition,
            events,
            nullIf(busy_sum, -9223372036854775808) AS busy_sum,
            nullIf(high_true, -9223372036854775808) AS high_true,
            nullIf(high_known, -9223372036854775808) AS high_known,
            wait_histogram AS wait_histogram,
            delay_histogram AS delay_histogram
        FROM raw.toy_5s_mood
        FINAL
        UNION ALL
        SELECT
            mood,
            device_id,
            fromUnixTimestamp64Milli((toUnixTimestamp64Milli(observed_at) - positiveModulo(toUnixTimestamp64Milli(observed_at), 5000)), 'Asia/Shanghai') AS window_start,
            source_partition,
            toInt64(count()) AS events,
            sum(toInt128(ifNull(if(abs(floor((toFloat64(if((mood = 'busy'), 1, NULL)) * 1) + 0.5)) <= 4503599627370496, toInt64(floor((toFloat64(if((mood = 'busy'), 1, NULL)) * 1) + 0.5)), NULL), 0))) AS busy_sum,
            sum(toInt128(ifNull(if((load >= 0.5), 1, NULL), 0))) AS high_true,
            sum(toInt128(ifNull(if(((load >= 0.5) IS NOT NULL), 1, NULL), 0))) AS high_known,
            sumMapIf([if(assumeNotNull(toInt64(wait)) <= 0, toInt32(-1), toInt32(bitShiftRight(reinterpretAsUInt64(toFloat64(assumeNotNull(toInt64(wait)))), 46) - 65472))], [toInt64(1)], isNotNull(wait)) AS wait_histogram,
            sumMapIf([if(assumeNotNull(toInt64(if((level >= 0), (toUnixTimestamp64Milli(observed_at) - toUnixTimestamp64Milli(began_at)), NULL))) <= 0, toInt32(-1), toInt32(bitShiftRight(reinterpretAsUInt64(toFloat64(assumeNotNull(toInt64(if((level >= 0), (toUnixTimestamp64Milli(observed_at) - toUnixTimestamp64Milli(began_at)), NULL))))), 46) - 65472))], [toInt64(1)], isNotNull(if((level >= 0), (toUnixTimestamp64Milli(observed_at) - toUnixTimestamp64Milli(began_at)), NULL))) AS delay_histogram
        FROM raw.toy
        FINAL
        WHERE ((least(greatest(seen_before, 0), 4611686018427387904) - toUnixTimestamp64Milli(observed_at)) > 5000) AND (((toUnixTimestamp64Milli(observed_at) - positiveModulo(toUnixTimestamp64Milli(observed_at), 5000)) + 10000) <= seen_before)
        GROUP BY
            mood,
            device_id,
            window_start,
            source_partition
    )
    GROUP BY
        mood,
        device_id,
        window_start
    HAVING events > 0
) AS windows
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW raw.quarantine_masked
(
    `topic` String COMMENT 'Topic of the record',
    `source_partition` UInt16 COMMENT 'Partition of the record',
    `source_offset` UInt64 COMMENT 'Offset of the record',
    `last_offset` UInt64 COMMENT 'Last offset, if a whole batch could not be opened',
    `stage` String COMMENT 'DECODE or VALIDATE',
    `cause` String COMMENT 'What is wrong with it',
    `key` Nullable(String) COMMENT 'Key, hexadecimal',
    `value` Nullable(String) COMMENT 'Value, hexadecimal',
    `published_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the broker stored the record',
    `arrived_at` DateTime64(3, 'Asia/Shanghai') COMMENT 'When the dead letter was stored'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'The quarantine, without bytes that may name a person'
AS SELECT
    topic,
    source_partition,
    source_offset,
    last_offset,
    stage,
    cause,
    if(has(CAST('[\'toy\']', 'Array(String)'), topic), key, NULL) AS key,
    if(has(CAST('[\'toy\']', 'Array(String)'), topic), value, NULL) AS value,
    published_at,
    arrived_at
FROM raw.quarantine
FINAL
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW raw.ledger_blocks
COMMENT 'What arrived of each block of 65536 offsets'
AS WITH
    bitmapOr(bitmapOr(r, q), c) AS offsets
SELECT
    topic,
    source_partition,
    block,
    bitmapCardinality(r) AS received,
    bitmapAndnotCardinality(q, r) AS quarantined,
    bitmapAndnotCardinality(c, bitmapOr(r, q)) AS control,
    ((bitmapCardinality(r) + bitmapCardinality(q)) + bitmapCardinality(c)) - bitmapCardinality(offsets) AS disputed,
    (block * 65536) + bitmapMax(offsets) AS highest,
    offsets
FROM
(
    SELECT
        topic,
        source_partition,
        block,
        groupBitmapMergeStateIf(offsets, kind = 'received') AS r,
        groupBitmapMergeStateIf(offsets, kind = 'quarantined') AS q,
        groupBitmapMergeStateIf(offsets, kind = 'control') AS c
    FROM raw.ledger
    GROUP BY
        topic,
        source_partition,
        block
    SETTINGS optimize_aggregation_in_order = 1
);

CREATE OR REPLACE VIEW raw.accounts
COMMENT 'Of each partition: offsets = stored + duplicate + withdrawn + quarantined + control + holes'
AS SELECT
    topic,
    source_partition,
    blocks.offsets AS offsets,
    stored.rows AS stored,
    (toInt64(received) - stored) - taken AS duplicate,
    taken AS withdrawn,
    quarantined,
    control,
    ((offsets - received) - quarantined) - control AS holes,
    disputed,
    stored.late AS late
FROM
(
    SELECT
        'toy' AS topic,
        source_partition,
        count() AS rows,
        sum(late) AS late
    FROM raw.toy
    FINAL
    GROUP BY source_partition
) AS stored
RIGHT JOIN
(
    SELECT
        topic,
        source_partition,
        max(highest) + 1 AS offsets,
        sum(received) AS received,
        sum(quarantined) AS quarantined,
        sum(control) AS control,
        sum(disputed) AS disputed
    FROM raw.ledger_blocks
    GROUP BY
        topic,
        source_partition
) AS blocks USING (topic, source_partition)
LEFT JOIN
(
    SELECT
        topic,
        source_partition,
        groupBitmapMerge(offsets) AS taken
    FROM raw.withdrawn
    GROUP BY
        topic,
        source_partition
) AS gone USING (topic, source_partition);

CREATE OR REPLACE VIEW raw.holes
COMMENT 'Ranges of offsets that did not arrive, below the highest that did'
AS SELECT
    topic,
    source_partition,
    before + 1 AS first,
    start - 1 AS last
FROM
(
    SELECT
        topic,
        source_partition,
        toInt64(run.1) AS start,
        lagInFrame(toInt64(run.2), 1, -1) OVER (PARTITION BY topic, source_partition ORDER BY run.1 ASC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before
    FROM
    (
        WITH
            bitmapCardinality(offsets) = 65536 AS full,
            if(full, [0, 65535], arraySort(bitmapToArray(offsets))) AS held
        SELECT
            topic,
            source_partition,
            arrayJoin(arrayMap(run -> ((block * 65536) + (run[1]), (block * 65536) + (run[-1])), arraySplit((offset, step) -> ((step > 1) AND (NOT full)), held, arrayDifference(held)))) AS run
        FROM raw.ledger_blocks
    )
)
WHERE start > (before + 1)
ORDER BY
    topic ASC,
    source_partition ASC,
    first ASC;

CREATE OR REPLACE VIEW city.catalogue
(
    `name` String COMMENT 'Feed, or table of reference data',
    `kind` String COMMENT 'feed or table',
    `department` String COMMENT 'Who publishes it',
    `batch` UInt16 COMMENT 'Batch it is connected in',
    `state` String COMMENT 'never seen, connected, silent or degraded',
    `reason` String COMMENT 'Why',
    `rate` Nullable(Float64) COMMENT 'Records a second that are expected; null if none are promised [1/s]',
    `silence` Nullable(Float64) COMMENT 'Longest pause that is normal; null if any is [s]',
    `first_arrival` Nullable(DateTime64(3, 'Asia/Shanghai')) COMMENT 'When the first record was published',
    `last_arrival` Nullable(DateTime64(3, 'Asia/Shanghai')) COMMENT 'When the last record was published',
    `records_1h` UInt64 COMMENT 'Records of the last hour, repeats among them',
    `records_1d` UInt64 COMMENT 'Records of the last day, repeats among them',
    `bad_1h` UInt64 COMMENT 'Dead letters of the last hour',
    `bad_1d` UInt64 COMMENT 'Dead letters of the last day'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'What is declared, and whether it is connected, by what arrived; now'
AS SELECT
    name,
    kind,
    department,
    batch,
    multiIf(isNull(first_ms), 'never seen', ((toUnixTimestamp64Milli(now64(3)) - last_ms) / 1000) > silence, 'silent', (bad_1d > 0) AND ((bad_1d / (records_1d + bad_1d)) > 0.1), 'degraded', ((least(86400000, toUnixTimestamp64Milli(now64(3)) - first_ms) / 1000) >= 3600) AND (records_1d < (((0.5 * rate) * least(86400000, toUnixTimestamp64Milli(now64(3)) - first_ms)) / 1000)), 'degraded', 'connected') AS state,
    ifNull(multiIf(isNull(first_ms), 'nothing ever arrived', ((toUnixTimestamp64Milli(now64(3)) - last_ms) / 1000) > silence, concat('nothing for ', formatReadableTimeDelta((toUnixTimestamp64Milli(now64(3)) - last_ms) / 1000), '; normal are ', formatReadableTimeDelta(silence), ' at most'), (bad_1d > 0) AND ((bad_1d / (records_1d + bad_1d)) > 0.1), concat(toString(round((bad_1d / (records_1d + bad_1d)) * 100)), '% of the records of the last day are bad'), ((least(86400000, toUnixTimestamp64Milli(now64(3)) - first_ms) / 1000) >= 3600) AND (records_1d < (((0.5 * rate) * least(86400000, toUnixTimestamp64Milli(now64(3)) - first_ms)) / 1000)), concat(toString(round(records_1d / (least(86400000, toUnixTimestamp64Milli(now64(3)) - first_ms) / 1000), 3)), ' records a second over the last ', formatReadableTimeDelta(least(86400000, toUnixTimestamp64Milli(now64(3)) - first_ms) / 1000), ', of ', toString(round(rate, 3))), 'arrives as declared'), '') AS reason,
    rate,
    silence,
    fromUnixTimestamp64Milli(first_ms, 'Asia/Shanghai') AS first_arrival,
    fromUnixTimestamp64Milli(last_ms, 'Asia/Shanghai') AS last_arrival,
    records_1h,
    records_1d,
    bad_1h,
    bad_1d
FROM
(
    SELECT
        'toy' AS name,
        'feed' AS kind,
        'Toys' AS department,
        toUInt16(1) AS batch,
        CAST(1., 'Nullable(Float64)') AS rate,
        CAST(60., 'Nullable(Float64)') AS silence
    UNION ALL
    SELECT
        'toy_limit' AS name,
        'table' AS kind,
        'Toys' AS department,
        toUInt16(1) AS batch,
        CAST(NULL, 'Nullable(Float64)') AS rate,
        CAST(NULL, 'Nullable(Float64)') AS silence
) AS declared
LEFT JOIN
(
    SELECT
        topic,
        first_ms,
        nullIf(greatest(ifNull(whole_ms, 0), toInt64(newest)), 0) AS last_ms,
        records_1h,
        records_1d,
        bad_1h,
        bad_1d
    FROM
    (
        SELECT
            topic,
            minIf(since, since < toUnixTimestamp64Milli(now64(3))) AS first_ms,
            maxIf(until, until < toUnixTimestamp64Milli(now64(3))) AS whole_ms
        FROM
        (
            SELECT
                topic,
                source_partition,
                block,
                min(since) AS since,
                max(until) AS until
            FROM raw.ledger
            WHERE kind != 'control'
            GROUP BY
                topic,
                source_partition,
                block
        )
        GROUP BY topic
    ) AS spans
    LEFT JOIN
    (
        SELECT
            topic,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(hour) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'received') AS records_1h,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(day) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'received') AS records_1d,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(hour) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'quarantined') AS bad_1h,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(day) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'quarantined') AS bad_1d
        FROM
        (
            SELECT
                topic,
                source_partition,
                block,
                kind,
                groupBitmapMergeState(offsets) AS held
            FROM raw.ledger
            WHERE (kind != 'control') AND ((topic, source_partition, block) IN (
                SELECT
                    topic,
                    source_partition,
                    block
                FROM raw.ledger
                WHERE kind != 'control'
                GROUP BY ALL
                HAVING max(until) >= (toUnixTimestamp64Milli(now64(3)) - 86400000)
            ))
            GROUP BY
                topic,
                source_partition,
                block,
                kind
        ) AS held
        INNER JOIN
        (
            SELECT
                topic,
                source_partition,
                min(block) * 65536 AS lowest,
                maxMap(minutes) AS minutes,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < toUnixTimestamp64Milli(now64(3))), minutes))), 65536)) AS end,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < (toUnixTimestamp64Milli(now64(3)) - 3600000)), minutes))), 65536)) AS hour,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < (toUnixTimestamp64Milli(now64(3)) - 86400000)), minutes))), 65536)) AS day,
                arrayMax((minute, last) -> ((minute * 60000) + (last % 65536)), mapKeys(mapFilter((minute, last) -> ((minute * 60000) < toUnixTimestamp64Milli(now64(3))), minutes)), mapValues(mapFilter((minute, last) -> ((minute * 60000) < toUnixTimestamp64Milli(now64(3))), minutes))) AS newest
            FROM raw.ledger
            WHERE (kind != 'control') AND ((topic, source_partition, block) IN (
                SELECT
                    topic,
                    source_partition,
                    block
                FROM raw.ledger
                WHERE kind != 'control'
                GROUP BY ALL
                HAVING max(until) >= (toUnixTimestamp64Milli(now64(3)) - 86400000)
            ))
            GROUP BY
                topic,
                source_partition
        ) AS marks USING (topic, source_partition)
        GROUP BY topic
    ) AS counted USING (topic)
    LEFT JOIN
    (
        SELECT
            topic,
            max(newest) AS newest
        FROM
        (
            SELECT
                topic,
                source_partition,
                min(block) * 65536 AS lowest,
                maxMap(minutes) AS minutes,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < toUnixTimestamp64Milli(now64(3))), minutes))), 65536)) AS end,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < (toUnixTimestamp64Milli(now64(3)) - 3600000)), minutes))), 65536)) AS hour,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < (toUnixTimestamp64Milli(now64(3)) - 86400000)), minutes))), 65536)) AS day,
                arrayMax((minute, last) -> ((minute * 60000) + (last % 65536)), mapKeys(mapFilter((minute, last) -> ((minute * 60000) < toUnixTimestamp64Milli(now64(3))), minutes)), mapValues(mapFilter((minute, last) -> ((minute * 60000) < toUnixTimestamp64Milli(now64(3))), minutes))) AS newest
            FROM raw.ledger
            WHERE (kind != 'control') AND ((topic, source_partition, block) IN (
                SELECT
                    topic,
                    source_partition,
                    block
                FROM raw.ledger
                WHERE kind != 'control'
                GROUP BY ALL
                HAVING max(until) >= (toUnixTimestamp64Milli(now64(3)) - 86400000)
            ))
            GROUP BY
                topic,
                source_partition
        )
        GROUP BY topic
    ) AS newest USING (topic)
    UNION ALL
    SELECT
        'toy_limit' AS topic,
        minOrNull(toUnixTimestamp64Milli(arrived_at)),
        maxOrNull(toUnixTimestamp64Milli(arrived_at)),
        countIf(toUnixTimestamp64Milli(arrived_at) >= (toUnixTimestamp64Milli(now64(3)) - 3600000)),
        countIf(toUnixTimestamp64Milli(arrived_at) >= (toUnixTimestamp64Milli(now64(3)) - 86400000)),
        0,
        0
    FROM raw.toy_limit
    FINAL
    WHERE toUnixTimestamp64Milli(arrived_at) < toUnixTimestamp64Milli(now64(3))
) AS arrived ON declared.name = arrived.topic
ORDER BY
    batch ASC,
    department ASC,
    name ASC
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW city.catalogue_at
(
    `name` String COMMENT 'Feed, or table of reference data',
    `kind` String COMMENT 'feed or table',
    `department` String COMMENT 'Who publishes it',
    `batch` UInt16 COMMENT 'Batch it is connected in',
    `state` String COMMENT 'never seen, connected, silent or degraded',
    `reason` String COMMENT 'Why',
    `rate` Nullable(Float64) COMMENT 'Records a second that are expected; null if none are promised [1/s]',
    `silence` Nullable(Float64) COMMENT 'Longest pause that is normal; null if any is [s]',
    `first_arrival` Nullable(DateTime64(3, 'Asia/Shanghai')) COMMENT 'When the first record was published',
    `last_arrival` Nullable(DateTime64(3, 'Asia/Shanghai')) COMMENT 'When the last record was published',
    `records_1h` UInt64 COMMENT 'Records of the last hour, repeats among them',
    `records_1d` UInt64 COMMENT 'Records of the last day, repeats among them',
    `bad_1h` UInt64 COMMENT 'Dead letters of the last hour',
    `bad_1d` UInt64 COMMENT 'Dead letters of the last day'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'What is declared, and whether it is connected, by what arrived; as the minute of t began'
AS SELECT
    name,
    kind,
    department,
    batch,
    multiIf(isNull(first_ms), 'never seen', (((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - last_ms) / 1000) > silence, 'silent', (bad_1d > 0) AND ((bad_1d / (records_1d + bad_1d)) > 0.1), 'degraded', ((least(86400000, (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - first_ms) / 1000) >= 3600) AND (records_1d < (((0.5 * rate) * least(86400000, (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - first_ms)) / 1000)), 'degraded', 'connected') AS state,
    ifNull(multiIf(isNull(first_ms), 'nothing ever arrived', (((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - last_ms) / 1000) > silence, concat('nothing for ', formatReadableTimeDelta(((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - last_ms) / 1000), '; normal are ', formatReadableTimeDelta(silence), ' at most'), (bad_1d > 0) AND ((bad_1d / (records_1d + bad_1d)) > 0.1), concat(toString(round((bad_1d / (records_1d + bad_1d)) * 100)), '% of the records of the last day are bad'), ((least(86400000, (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - first_ms) / 1000) >= 3600) AND (records_1d < (((0.5 * rate) * least(86400000, (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - first_ms)) / 1000)), concat(toString(round(records_1d / (least(86400000, (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - first_ms) / 1000), 3)), ' records a second over the last ', formatReadableTimeDelta(least(86400000, (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - first_ms) / 1000), ', of ', toString(round(rate, 3))), 'arrives as declared'), '') AS reason,
    rate,
    silence,
    fromUnixTimestamp64Milli(first_ms, 'Asia/Shanghai') AS first_arrival,
    fromUnixTimestamp64Milli(last_ms, 'Asia/Shanghai') AS last_arrival,
    records_1h,
    records_1d,
    bad_1h,
    bad_1d
FROM
(
    SELECT
        'toy' AS name,
        'feed' AS kind,
        'Toys' AS department,
        toUInt16(1) AS batch,
        CAST(1., 'Nullable(Float64)') AS rate,
        CAST(60., 'Nullable(Float64)') AS silence
    UNION ALL
    SELECT
        'toy_limit' AS name,
        'table' AS kind,
        'Toys' AS department,
        toUInt16(1) AS batch,
        CAST(NULL, 'Nullable(Float64)') AS rate,
        CAST(NULL, 'Nullable(Float64)') AS silence
) AS declared
LEFT JOIN
(
    SELECT
        topic,
        first_ms,
        nullIf(greatest(ifNull(whole_ms, 0), toInt64(newest)), 0) AS last_ms,
        records_1h,
        records_1d,
        bad_1h,
        bad_1d
    FROM
    (
        SELECT
            topic,
            minIf(since, since < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)) AS first_ms,
            maxIf(until, until < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)) AS whole_ms
        FROM
        (
            SELECT
                topic,
                source_partition,
                block,
                min(since) AS since,
                max(until) AS until
            FROM raw.ledger
            WHERE kind != 'control'
            GROUP BY
                topic,
                source_partition,
                block
        )
        GROUP BY topic
    ) AS spans
    LEFT JOIN
    (
        SELECT
            topic,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(hour) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'received') AS records_1h,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(day) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'received') AS records_1d,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(hour) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'quarantined') AS bad_1h,
            sumIf(bitmapCardinality(bitmapSubsetInRange(held, toUInt32(greatest(0, least(65536, toInt64(day) - toInt64(block * 65536)))), toUInt32(greatest(0, least(65536, toInt64(end) - toInt64(block * 65536)))))), kind = 'quarantined') AS bad_1d
        FROM
        (
            SELECT
                topic,
                source_partition,
                block,
                kind,
                groupBitmapMergeState(offsets) AS held
            FROM raw.ledger
            WHERE (kind != 'control') AND ((topic, source_partition, block) IN (
                SELECT
                    topic,
                    source_partition,
                    block
                FROM raw.ledger
                WHERE kind != 'control'
                GROUP BY ALL
                HAVING max(until) >= ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 86400000)
            ))
            GROUP BY
                topic,
                source_partition,
                block,
                kind
        ) AS held
        INNER JOIN
        (
            SELECT
                topic,
                source_partition,
                min(block) * 65536 AS lowest,
                maxMap(minutes) AS minutes,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)), minutes))), 65536)) AS end,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 3600000)), minutes))), 65536)) AS hour,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 86400000)), minutes))), 65536)) AS day,
                arrayMax((minute, last) -> ((minute * 60000) + (last % 65536)), mapKeys(mapFilter((minute, last) -> ((minute * 60000) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)), minutes)), mapValues(mapFilter((minute, last) -> ((minute * 60000) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)), minutes))) AS newest
            FROM raw.ledger
            WHERE (kind != 'control') AND ((topic, source_partition, block) IN (
                SELECT
                    topic,
                    source_partition,
                    block
                FROM raw.ledger
                WHERE kind != 'control'
                GROUP BY ALL
                HAVING max(until) >= ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 86400000)
            ))
            GROUP BY
                topic,
                source_partition
        ) AS marks USING (topic, source_partition)
        GROUP BY topic
    ) AS counted USING (topic)
    LEFT JOIN
    (
        SELECT
            topic,
            max(newest) AS newest
        FROM
        (
            SELECT
                topic,
                source_partition,
                min(block) * 65536 AS lowest,
                maxMap(minutes) AS minutes,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)), minutes))), 65536)) AS end,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 3600000)), minutes))), 65536)) AS hour,
                greatest(lowest, intDiv(arrayMax(mapValues(mapFilter((minute, last) -> ((minute * 60000) < ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 86400000)), minutes))), 65536)) AS day,
                arrayMax((minute, last) -> ((minute * 60000) + (last % 65536)), mapKeys(mapFilter((minute, last) -> ((minute * 60000) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)), minutes)), mapValues(mapFilter((minute, last) -> ((minute * 60000) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)), minutes))) AS newest
            FROM raw.ledger
            WHERE (kind != 'control') AND ((topic, source_partition, block) IN (
                SELECT
                    topic,
                    source_partition,
                    block
                FROM raw.ledger
                WHERE kind != 'control'
                GROUP BY ALL
                HAVING max(until) >= ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 86400000)
            ))
            GROUP BY
                topic,
                source_partition
        )
        GROUP BY topic
    ) AS newest USING (topic)
    UNION ALL
    SELECT
        'toy_limit' AS topic,
        minOrNull(toUnixTimestamp64Milli(arrived_at)),
        maxOrNull(toUnixTimestamp64Milli(arrived_at)),
        countIf(toUnixTimestamp64Milli(arrived_at) >= ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 3600000)),
        countIf(toUnixTimestamp64Milli(arrived_at) >= ((intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000) - 86400000)),
        0,
        0
    FROM raw.toy_limit
    FINAL
    WHERE toUnixTimestamp64Milli(arrived_at) < (intDiv(toUnixTimestamp64Milli({t:DateTime64(3, 'Asia/Shanghai')}), 60000) * 60000)
) AS arrived ON declared.name = arrived.topic
ORDER BY
    batch ASC,
    department ASC,
    name ASC
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

CREATE OR REPLACE VIEW city.catalogue_batches
(
    `batch` UInt16 COMMENT 'Batch',
    `declared` UInt64 COMMENT 'Tables, and feeds that promise a rate',
    `connected` UInt64 COMMENT 'Those of them that are connected',
    `degraded` UInt64 COMMENT 'Those that are degraded',
    `silent` UInt64 COMMENT 'Those that are silent',
    `never_seen` UInt64 COMMENT 'Those of which nothing ever arrived'
)
DEFINER = owner SQL SECURITY DEFINER
COMMENT 'How far each batch is connected; feeds that promise no rate, and may be quiet for ever, do not count'
AS SELECT
    batch,
    count() AS declared,
    countIf(state = 'connected') AS connected,
    countIf(state = 'degraded') AS degraded,
    countIf(state = 'silent') AS silent,
    countIf(state = 'never seen') AS never_seen
FROM city.catalogue
WHERE (kind = 'table') OR (rate IS NOT NULL)
GROUP BY batch
SETTINGS do_not_merge_across_partitions_select_final = 0, use_skip_indexes_if_final_exact_mode = 1, group_by_overflow_mode = 'throw', join_overflow_mode = 'throw', set_overflow_mode = 'throw', distinct_overflow_mode = 'throw', sort_overflow_mode = 'throw', read_overflow_mode = 'throw';

