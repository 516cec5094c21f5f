#!/usr/bin/env bash
# A Kafka broker on this machine, without Docker: Java 17 and Maven are enough.
set -euo pipefail

usage() {
  cat <<'END'
A Kafka broker (4.1, KRaft mode) on this machine, for trying out `pipeline consume` and for the tests.

  broker.sh fetch [--registry]   fetches the jars (54 MB; 146 MB more for the registry): once, half a minute
  broker.sh start [OPTIONS]      fetches them if need be, starts the broker, says how to use it
  broker.sh topic NAME [--partitions N]   makes a topic with N (8) partitions
  broker.sh produce NAME         sends the lines of the standard input to the topic, one message a line
  broker.sh stop [--data DIR]    stops what was started; the topics stay in DIR

Options of start:
  --port PORT            the broker's port (9092), also for topic and produce; PORT + 1 is taken too
  --data DIR             where the topics and logs lie (CACHE/data)
  --registry             a schema registry as well (Apicurio, with the API of Confluent's)
  --registry-port PORT   the registry's port (8081)
  --set KEY=VALUE        a further line of server.properties

CACHE is ${XDG_CACHE_HOME:-$HOME/.cache}/climber-pilot/kafka. Remove it, and nothing is left.

Example:
  tests/kafka/broker.sh start
  tests/kafka/broker.sh topic interactions
  tests/kafka/broker.sh produce interactions < events.jsonl
  pipeline consume --config C.toml --set kafka.brokers=localhost:9092 --set kafka.topic=interactions
  tests/kafka/broker.sh stop
END
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/climber-pilot/kafka"
broker_jars="$cache/kafka-4.1.0"
registry_jars="$cache/apicurio-2.6.13"

say() { printf '%s\n' "$*" >&2; }
die() { say "broker.sh: $*"; exit 1; }

# Java 17 or later, or exit code 3.
need_java() {
  local version
  version="$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)" || true
  if [ "${version:-0}" -lt 17 ]; then
    say "Kafka needs Java 17 or later, and there is ${version:+only Java }${version:-no java}: install a JRE"
    exit 3
  fi
}

# fetch_into DIR GOAL: DIR is there as a whole or not at all. Each fetch works in a directory of its own, also with
# Maven's local repository, which two processes must not share.
fetch_into() {
  local directory="$1" goal="$2" work
  [ -d "$directory" ] && return
  if ! command -v mvn >/dev/null; then
    say "Maven fetches Kafka's jars, and there is no mvn: install it"
    exit 3
  fi
  mkdir -p "$cache"
  work="$(mktemp -d "$cache/fetch.XXXXXX")"
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  say "fetching $(basename "$directory") into $cache: once, some seconds to minutes"
  mvn -q -B -Dstyle.color=never -f "$here/pom.xml" -Dwork="$work" -Dmaven.repo.local="$work/repository" \
    "dependency:$goal" -DoutputDirectory="$work/jars" >&2 \
    || die "Maven could not fetch $(basename "$directory"); what it says is above"
  # Where somebody else was faster, mv puts ours inside theirs; it is not needed then.
  [ -d "$directory" ] || mv "$work/jars" "$directory"
  rm -rf "$work" "$directory/jars"
  trap - EXIT
}

fetch() {
  need_java
  fetch_into "$broker_jars" copy-dependencies
  if [ -n "$registry" ]; then fetch_into "$registry_jars" unpack; fi
}

# With --tied, a line on the standard input kills this process, and its end removes the data as well: so that nothing
# stays behind a test, however that ends. To be called before `exec`.
tie() {
  [ -n "$tied" ] || return 0
  exec 3<&0
  (
    if read -r _ <&3; then kill -KILL $$; else kill -KILL $$ || true; sleep 1; rm -rf "$data"; fi
  ) &
  exec 3<&- </dev/null
}

# The broker in the foreground, as this very process.
run() {
  mkdir -p "$data"
  local properties="$data/server.properties"
  cat >"$properties" <<END
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$data/log
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
END
  printf '%s' "$settings" >>"$properties"
  if [ ! -e "$data/log/meta.properties" ]; then
    # The id need not be unique: nobody meets two of these clusters.
    java "${quick[@]}" -cp "$broker_jars/*" kafka.tools.StorageTool format -t Y2xpbWJlci1waWxvdC0tMQ \
      -c "$properties" --standalone
  fi
  tie
  exec java -Xmx512m -XX:+UseSerialGC -cp "$broker_jars/*" kafka.Kafka "$properties"
}

# The registry in the foreground, as this very process. It keeps its schemas in memory.
run_registry() {
  mkdir -p "$data"
  tie
  exec java -Xmx400m -XX:+UseSerialGC -Dquarkus.http.host=127.0.0.1 -Dquarkus.http.port="$registry_port" \
    -jar "$registry_jars"/apicurio-registry-app-*-runner.jar
}

# is_running NAME: the process that $data/NAME.pid names is there, and still what it was.
is_running() {
  local pid
  pid="$(cat "$data/$1.pid" 2>/dev/null)" && ps -o args= -p "$pid" 2>/dev/null | grep -q java
}

# launch NAME COMMAND READY: runs it in the background until its log says READY.
launch() {
  local name="$1" command="$2" ready="$3"
  mkdir -p "$data"
  nohup "$here/broker.sh" "$command" --data "$data" --port "$port" --registry-port "$registry_port" \
    "${passed[@]+"${passed[@]}"}" >"$data/$name.log" 2>&1 </dev/null &
  echo $! >"$data/$name.pid"
  for _ in $(seq 300); do
    grep -q "$ready" "$data/$name.log" && return
    if ! kill -0 $! 2>/dev/null; then
      rm -f "$data/$name.pid"
      tail -n 5 "$data/$name.log" >&2
      die "the $name ended; its log is $data/$name.log"
    fi
    sleep 0.3
  done
  halt "$name"
  die "the $name is not up after 90 s; its log is $data/$name.log"
}

start() {
  fetch
  trap 'halt broker; halt registry; exit 130' INT TERM
  if is_running broker; then
    say "the broker runs already: broker.sh stop stops it"
  else
    say "starting the broker ..."
    launch broker run 'Kafka Server started'
    say "The broker listens on localhost:$port. A topic, and one JSON object a line into it:"
    say "  $0 topic interactions --port $port"
    say "  $0 produce interactions --port $port < events.jsonl"
    say "and into the tables:"
    say "  pipeline consume --config C.toml --set kafka.brokers=localhost:$port --set kafka.topic=interactions"
  fi
  if [ -n "$registry" ]; then
    if is_running registry; then
      say "the registry runs already"
    else
      say "starting the registry ..."
      launch registry run-registry 'Listening on'
      say "In the configuration, for kafka.format = \"avro\" or \"protobuf\":"
      say "  kafka.schema_registry = \"http://localhost:$registry_port/apis/ccompat/v7\""
    fi
  fi
}

# tool CLASS ARGS: one of Kafka's own programs, for the broker on $port.
tool() {
  local class="$1"
  shift
  fetch
  java "${quick[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$broker_jars/*" \
    "org.apache.kafka.tools.$class" --bootstrap-server "localhost:$port" "$@"
}

# halt NAME: SIGTERM, with which a broker closes its files, and SIGKILL after 60 s.
halt() {
  local pid
  if is_running "$1"; then
    pid="$(cat "$data/$1.pid")"
    kill -TERM "$pid"
    for _ in $(seq 200); do
      is_running "$1" || break
      sleep 0.3
    done
    if is_running "$1"; then kill -KILL "$pid"; fi
    say "stopped the $1"
  fi
  rm -f "$data/$1.pid"
}

# For programs that run for a second.
quick=(-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
data="$cache/data"
port=9092
controller_port=
registry=
registry_port=8081
tied=
settings=
passed=()
partitions=8
topic=

command="${1:-help}"
[ $# -gt 0 ] && shift
case "$command" in
  topic | produce)
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    topic="$1"
    shift
    ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --registry) registry=1; shift; continue ;;
    --tied) tied=1; shift; continue ;;
    -h | --help) command=help; shift; continue ;;
    --*=*)
      option="$1"
      shift
      set -- "${option%%=*}" "${option#*=}" "$@"
      ;;
  esac
  [ $# -ge 2 ] || { usage >&2; exit 2; }
  case "$1" in
    --port) port="$2" ;;
    --controller-port) controller_port="$2"; passed+=("$1" "$2") ;;
    --registry-port) registry_port="$2" ;;
    --data) data="$2" ;;
    --partitions) partitions="$2" ;;
    --set) settings+="$2"$'\n'; passed+=("$1" "$2") ;;
    *) usage >&2; exit 2 ;;
  esac
  shift 2
done
controller_port="${controller_port:-$((port + 1))}"

case "$command" in
  help | -h | --help) usage ;;
  fetch) fetch ;;
  start) start ;;
  topic) tool TopicCommand --create --topic "$topic" --partitions "$partitions" ;;
  produce) tool ConsoleProducer --topic "$topic" ;;
  stop) halt registry; halt broker ;;
  run) run ;;
  run-registry) run_registry ;;
  *) usage >&2; exit 2 ;;
esac
