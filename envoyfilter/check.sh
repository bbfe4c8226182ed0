#!/bin/sh
# Looks at b3relay in a namespace, and says in words what is right and what is missing.
#
#   envoyfilter/check.sh NAMESPACE [POD...]
#
# Needs kubectl, with the rights to read the namespace, its pods, their logs, ConfigMaps and
# Istio's objects, and to `exec` in pods; and istioctl, for what it finds itself. Changes
# nothing. Make a click or two before: much is seen only from requests.
#
# Environment: ISTIO_NAMESPACE, the root namespace of the mesh (istio-system).
# Exit status: 0 all right; 1 something is wrong; 2 it could not look.
# shellcheck disable=SC2016 # backquotes in what is printed are no commands
set -eu
export LC_ALL=C

usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
case ${1:-} in '' | -*) usage ;; esac
namespace=$1
shift
root=${ISTIO_NAMESPACE:-istio-system}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
wrong=0
tab=$(printf '\t')

ok() { printf 'ok     %s\n' "$*"; }
note() { printf 'note   %s\n' "$*"; }
# wrong WHAT IS WRONG; do WHAT TO DO.
wrong() { printf 'WRONG  %s\n' "$*"; wrong=$((wrong + 1)); }
do_() { printf '       do: %s\n' "$*"; }
stop() { printf 'check: %s\n' "$*" >&2; exit 2; }

command -v kubectl >/dev/null 2>&1 || stop 'kubectl is missing'

# get NAMESPACE KIND JSONPATH: nothing if the cluster has no such kind. What else went wrong
# is noted in `unread.NAMESPACE`.
get() {
  kubectl -n "$1" get "$2" -o "jsonpath=$3" 2>"$work/error" ||
    grep -v 'have a resource type' "$work/error" >>"$work/unread.$1" || true
}
# Stops if something of the namespace could not be read: what follows would be wrong.
all_read() { [ ! -s "$work/unread.$namespace" ] || stop "could not look: $(head -n 1 "$work/unread.$namespace")"; }
ask() { kubectl -n "$namespace" exec "$1" -c istio-proxy -- pilot-agent request GET "$2" 2>"$work/error"; }

mode=$(kubectl get namespace "$namespace" -o 'jsonpath={.metadata.labels.istio\.io/dataplane-mode}' 2>"$work/error") ||
  stop "no namespace $namespace, or no cluster: $(head -n 1 "$work/error")"

# --- what was applied ---------------------------------------------------------------

# Of each object one line: where and what it is, its selector, where the module is.
forms() {
  for place in "$namespace" "$root"; do
    get "$place" envoyfilters.networking.istio.io '{range .items[*]}EnvoyFilter {.metadata.namespace}/{.metadata.name}{"\t"}{.spec.workloadSelector.labels}{"\t"}{.spec.configPatches[*].patch.value.typed_config.config.vm_config.code.local.filename}{"\t"}{.spec.configPatches[*].patch.value.typed_config.config.vm_config.code.remote.http_uri.uri}{"\t"}{.spec.configPatches[*].match.context}{"\n"}{end}' |
      awk -F '\t' '/b3relay/ && $5 ~ /SIDECAR/'
    get "$place" wasmplugins.extensions.istio.io '{range .items[*]}WasmPlugin {.metadata.namespace}/{.metadata.name}{"\t"}{.spec.selector.matchLabels}{"\t\t"}{.spec.url}{"\t"}{.spec.failStrategy}{"\n"}{end}' |
      grep b3relay || true
    get "$place" trafficextensions.extensions.istio.io '{range .items[*]}TrafficExtension {.metadata.namespace}/{.metadata.name}{"\t"}{.spec.selector.matchLabels}{"\t\t"}{.spec.wasm.url}{"\t"}{.spec.wasm.failStrategy}{"\n"}{end}' |
      grep b3relay || true
    [ "$namespace" != "$root" ] || break
  done
}
forms >"$work/forms"
all_read
[ ! -s "$work/unread.$root" ] ||
  note "form: what is in $root could not be read: $(head -n 1 "$work/unread.$root")"
from_file=no
if [ -s "$work/forms" ]; then
  :
elif [ -s "$work/unread.$root" ]; then
  note "form: nothing of b3relay in $namespace; it may be in $root (envoyfilter/mesh)"
else
  wrong "form: nothing of b3relay in $namespace or $root"
  do_ "kubectl -n $namespace apply -k envoyfilter/sidecars, after the module is mounted (envoyfilter/README.md)"
fi
while IFS= read -r line; do
  # Tabs are no field separators of `read` that keep empty fields.
  field() { printf '%s\n' "$line" | cut -f "$1"; }
  named=$(field 1)
  file=$(field 3) url=$(field 4) more=$(field 5)
  file=${file%% *} url=${url%% *}
  [ -z "$file" ] || from_file=yes
  ok "form: $named${url:+, image $url}${file:+, file $file}$([ -z "$(field 2)" ] || printf ', for pods with %s' "$(field 2)")"
  case $named in
    EnvoyFilter*) ;;
    *) [ "$more" = FAIL_OPEN ] || {
      wrong "form: $named has not failStrategy FAIL_OPEN: without the image every request is answered with 403"
      do_ 'failStrategy: FAIL_OPEN, as in envoyfilter/wasmplugin'
    } ;;
  esac
done <"$work/forms"
if [ "$(grep -c "$tab$tab" "$work/forms")" -gt 1 ]; then
  note 'form: more than one, for all pods of a namespace: see whether a pod has the filter twice, below'
fi

if [ $from_file = yes ]; then
  size=$(kubectl -n "$namespace" get configmap b3relay \
    -o 'go-template={{range $key, $value := .binaryData}}{{$key}} {{len $value}} {{end}}' 2>"$work/error") || size=none
  case $size in
    *'plugin.wasm '*) ok "module: ConfigMap b3relay, key plugin.wasm" ;;
    none)
      if grep -q NotFound "$work/error"; then
        note "module: no ConfigMap b3relay in $namespace: right only if an image is mounted (mount-image.yaml)"
      else
        note "module: the ConfigMap b3relay could not be read: $(head -n 1 "$work/error")"
      fi
      ;;
    *)
      wrong 'module: the ConfigMap b3relay has no key plugin.wasm'
      do_ "kubectl -n $namespace create configmap b3relay --from-file=plugin.wasm=b3relay.wasm --dry-run=client -o yaml | kubectl apply --server-side -f -"
      ;;
  esac
fi

# Istio heeds one Telemetry without a selector in a namespace. One for gateways or services
# has a targetRef or targetRefs instead.
get "$namespace" telemetries.telemetry.istio.io '{range .items[*]}{.metadata.name}{"\t"}{.spec.selector.matchLabels}{.spec.targetRef}{.spec.targetRefs}{"\n"}{end}' |
  awk -F '\t' '$1 != "" && $2 == "" {print $1}' >"$work/telemetries"
if [ "$(wc -l <"$work/telemetries")" -gt 1 ]; then
  wrong "telemetry: $(tr '\n' ' ' <"$work/telemetries")have no selector, and Istio heeds one of them, the oldest"
  do_ 'put their entries into one, and delete the others'
fi

# --- pods ---------------------------------------------------------------------------

get "$namespace" pods '{range .items[*]}{.metadata.name}{"\t"}{.status.phase}{"\t"}{.metadata.deletionTimestamp}{"\t"}{.spec.containers[*].name} {.spec.initContainers[*].name}{"\t"}{.spec.volumes[*].name}{"\t"}{.metadata.labels.gateway\.networking\.k8s\.io/gateway-name}{"\t"}{.spec.containers[?(@.name=="istio-proxy")].args}{.spec.initContainers[?(@.name=="istio-proxy")].args}{"\t"}{.metadata.labels.istio\.io/dataplane-mode}{"\t"}{.metadata.labels.sidecar\.istio\.io/inject} {.metadata.annotations.sidecar\.istio\.io/inject}{"\t"}{.spec.hostNetwork}{"\t"}{.metadata.labels}{"\n"}{end}' >"$work/all"
all_read
for kind in ending gateways pods ambient apart bare; do : >"$work/$kind"; done
awk -F '\t' -v mode="$mode" -v to="$work/" '
  $3 != "" { print >(to "ending"); next }
  $2 != "Running" { next }
  # A gateway has an istio-proxy too, and the patches for sidecars do not reach it.
  $7 ~ /^\["proxy","(router|waypoint)"/ || ($6 != "" && $7 !~ /^\["proxy","sidecar"/) { print >(to "gateways"); next }
  (" " $4 " ") ~ / istio-proxy / { print >(to "pods"); next }
  $8 == "ambient" || ($8 == "" && mode == "ambient") { print >(to "ambient"); next }
  mode == "ambient" || $9 ~ /false/ || $10 == "true" { print >(to "apart"); next }
  { print >(to "bare") }
' "$work/all"
# some KIND: says which pods there are of it, if any.
some() { cut -f 1 "$work/$1" | tr '\n' ' '; }
[ ! -s "$work/ending" ] || note "pods: $(some ending)still terminating: not looked at; their logs tell of the past"
[ ! -s "$work/gateways" ] || note "pods: $(some gateways)of gateways or waypoints, not sidecars: not looked at (client spans of a gateway: gateway-spans.yaml)"
[ ! -s "$work/ambient" ] || note "pods: $(some ambient)in ambient mode, which b3relay does not support: their calls are joined by nobody"
[ ! -s "$work/apart" ] || note "pods: $(some apart)without a sidecar on purpose (a label or an annotation says so, or they have the network of their node): their calls are joined by nobody"
if [ -s "$work/bare" ]; then
  wrong "pods: $(some bare)without a sidecar: their calls are joined by nobody"
  do_ "kubectl label namespace $namespace istio-injection=enabled (or istio.io/rev), and restart them"
fi
if [ ! -s "$work/pods" ]; then
  wrong "pods: none in $namespace is running with a sidecar"
fi

# Those that no form selects are to be without b3relay; and a form here that selects none of
# them has the labels of something else.
for kind in others idle; do : >"$work/$kind"; done
[ ! -s "$work/forms" ] || awk -F '\t' -v here=" $namespace/" -v to="$work/" '
  # Both as JSON, in which no label has a comma or a brace.
  function has(labels, selector, n, pair) {
    gsub(/[{}]/, "", selector)
    for (n = split(selector, pair, ","); n > 0; n--) if (!index(labels, pair[n])) return 0
    return 1
  }
  FILENAME == ARGV[1] { name[++forms] = $1; selector[forms] = $2; next }
  {
    found = 0; pods++
    for (i = 1; i <= forms; i++) if (has($11, selector[i])) found = used[i] = 1
    if (!found) print >(to "others")
  }
  END { for (i = 1; i <= forms; i++) if (pods && !used[i] && index(name[i], here)) print name[i] >(to "idle") }
' "$work/forms" "$work/pods"
while IFS= read -r named; do
  wrong "form: $named selects no pod with a sidecar"
  do_ 'correct the labels in its selector (and in that of its Telemetry): kubectl get pods --show-labels'
done <"$work/idle"
[ $# -gt 0 ] || [ ! -s "$work/others" ] ||
  note "pods: $(some others)selected by no form above, and so without b3relay: not looked at"

# --- sidecars -----------------------------------------------------------------------

# Listeners of Envoy, as it prints them: for each direction `direction HTTP-managers
# with-tracing with-b3relay most-b3relay-in-one provider both-forms sampling collector`.
listeners() {
  awk '
    function text(line) { sub(/^[^:]*: *"/, "", line); sub(/".*/, "", line); return line }
    function end_of_manager() { if (here > most) most = here; if (here) ours++; if (tracing) traced++; here = tracing = 0 }
    function end_of_listener(side) {
      end_of_manager()
      http[side] += managers; spans[side] += traced; filters[side] += ours
      if (most > twice[side]) twice[side] = most
      if (provider != "") { name[side] = provider; w3c[side] = both; share[side] = sampling; to[side] = collector }
      managers = traced = ours = most = 0; provider = sampling = collector = ""; both = 0
    }
    /"@type":.*HttpConnectionManager"/ { end_of_manager(); managers++ }
    /"name": "envoy\.tracers\./ { provider = text($0); sub(/envoy\.tracers\./, "", provider); tracing = 1 }
    provider != "" && collector == "" && /"(collector_cluster|cluster|cluster_name)": "/ { collector = text($0) }
    /"trace_context_option": "USE_B3_WITH_W3C/ { both = 1 }
    /"random_sampling": *\{ *\}/ { sampling = 0 }
    /"random_sampling": *\{ *$/ { getline; sampling = $0; sub(/.*: */, "", sampling); sub(/[^0-9.].*/, "", sampling); if (sampling == "") sampling = 0 }
    # A place in a chain; the name of a plugin is followed by other things.
    named && /"(config_discovery|typed_config)"/ { here++ }
    { named = /"name": "[^"]*b3relay[^"]*"/ }
    /"traffic_direction": / { end_of_listener(text($0)) }
    END {
      for (side in http) print side, http[side] + 0, spans[side] + 0, filters[side] + 0, twice[side] + 0, \
        (name[side] == "" ? "-" : name[side]), w3c[side] + 0, (share[side] == "" ? 100 : share[side]), (to[side] == "" ? "-" : to[side])
    }'
}

# The filters as the sidecar has received them last, taken or refused: `name type time
# configuration`, the last as Envoy prints it.
received() {
  awk '
    function text(line) { sub(/^[^:]*: *"/, "", line); sub(/".*/, "", line); return line }
    /"ecds_filter": / { name = type = told = ""; inner = 0 }
    inner && /"value": "/ { told = $0 }
    /"name": / && name == "" { name = text($0) }
    /"typed_config": / && !inner { inner = 1; next }
    inner && type == "" && /"@type": / { type = text($0); sub(/.*\./, "", type) }
    /"last_updated": / { if (name ~ /b3relay/) print name, type, text($0), told }'
}

# Those of them that Envoy refused when they came, or one of them if they came together.
# It says so at once, or when a module that it compiles first is ready.
refused() {
  [ -s "$work/received" ] || return 0
  awk -v key="$(printf '%s\n' "$said" | sed -n 's/^configuration key `\([a-z0-9_]*\).*/\1/p')" '
    function seconds(time) { return substr(time, 12, 2) * 3600 + substr(time, 15, 2) * 60 + substr(time, 18, 6) }
    # How long after the one the other is, in a day.
    function since(one, other) { return (other - one + 86400) % 86400 }
    NR == FNR { name[++n] = $1; came[n] = seconds($3); told[n] = $0; next }
    /TypedExtensionConfig rejected: .*b3relay/ && match($0, /[0-9]+-[0-9][0-9]-[0-9][0-9]T[0-9:.]+/) {
      said = seconds(substr($0, RSTART, RLENGTH))
      # The last that came before, and what came with it.
      least = 10; later = 0
      for (i = 1; i <= n; i++) {
        if (since(came[i], said) < least) least = since(came[i], said)
        if (since(said, came[i]) < 43200) later = 1
      }
      for (i = 1; i <= n; i++)
        # What came later may be the correction of the one that was meant.
        if (since(came[i], said) < 10 && since(came[i], said) - least < 1 && (!later || (key != "" && index(told[i], "\"" key "\\\"")))) found[i]
    }
    END { for (i = 1; i <= n; i++) if (i in found) { printf "%s%s", between, name[i]; between = " or " } }
  ' "$work/received" "$work/log"
}
# A refused configuration is not seen in the counters if there is one from before.
beside() {
  refused=$(refused)
  [ -n "$refused" ] && [ "$seen_in" -gt 0 ] && [ "$seen_out" -gt 0 ] || return 0
  wrong "$pod: the configuration of $refused that came last is refused, and the one before is still at work${said:+: $said}"
  remedy "$said"
}

# The image of an EnvoyFilter that the agent could not fetch when it was last asked for it.
# Envoy refuses what the agent puts into its place, and keeps the filter from before.
unfetched() {
  grep '^EnvoyFilter' "$work/forms" | cut -f 4 | tr ' ' '\n' | sort -u | while IFS= read -r url; do
    case $url in oci://*/*) ;; *) continue ;; esac
    name=${url##*/}
    awk -v url="$url" -v name="${name%%[:@]*}" '
      /fetching image/ && index($0, name) { failed = 0 }
      index($0, "cannot fetch Wasm module " url ":") { failed = 1 }
      END { if (failed) print url }
    ' "$work/log"
  done
}
# The last of what Envoy, or the agent, says of why it did not take something.
complaint() {
  kubectl -n "$namespace" logs "$1" -c istio-proxy --tail=5000 2>/dev/null >"$work/log" || true
  {
    grep 'rejected: ' "$work/log" | tail -n 1 || true
    # Better, if there is one: it says what.
    grep -e 'Invalid path' -e 'b3relay: configuration' -e 'cannot fetch Wasm module' -e 'MANIFEST_UNKNOWN' \
      -e 'Failed to load Wasm' -e 'which does not match' "$work/log" | tail -n 1 || true
  } | tail -n 1 |
    sed -e 's/.*b3relay: configuration/configuration/' -e 's/.*rejected: /rejected: /' \
      -e 's/.*\(cannot fetch Wasm module\)/\1/' -e 's/[[:space:]]*thread=.*//' -e 's/ applying allow RBAC filter.*//' |
    cut -c 1-400
}
remedy() {
  case $1 in
    *'Invalid path'*) do_ 'mount the module (mount.yaml) and restart the pod; the ConfigMap must be there before the pod starts' ;;
    *configuration*) do_ 'correct the configuration, and apply it again' ;;
    *'does not match'*) do_ "sha256 is the digest of the image's manifest, not of the file" ;;
    *fetch* | *MANIFEST_UNKNOWN*) do_ 'correct the name of the image, or let the pods reach its registry' ;;
    *'Failed to load'* | *'Unable to create'*) do_ 'see the log of istio-proxy: the file is not the module, or its configuration is refused' ;;
    *) do_ 'envoyfilter/README.md#check' ;;
  esac
}
# count NAME: a counter of the pod at hand, with its label in front as Envoy has it.
count() { awk -v name="wasmcustom.b3relay_$1" -F ': ' '$1 == name {n = $2} END {print n + 0}' "$work/stats"; }

sidecar() {
  pod=$1 volumes=$2
  if ! ask "$pod" 'stats?filter=b3relay|update_rejected' >"$work/stats" ||
    ! ask "$pod" 'config_dump?resource=dynamic_listeners' >"$work/dump"; then
    wrong "$pod: its sidecar does not answer: $(head -n 1 "$work/error")"
    return
  fi
  listeners <"$work/dump" >"$work/sides"
  # shellcheck disable=SC2046 # one line of numbers
  set -- $(awk '$1 == "INBOUND" {print; exit}' "$work/sides")
  in_http=${2:-0} in_spans=${3:-0} in_ours=${4:-0} in_most=${5:-0} tracer=${6:--} both=${7:-0} sampling=${8:-100} collector=${9:--}
  # shellcheck disable=SC2046
  set -- $(awk '$1 == "OUTBOUND" {print; exit}' "$work/sides")
  out_http=${2:-0} out_spans=${3:-0} out_ours=${4:-0} out_most=${5:-0}

  if [ $from_file = yes ]; then
    case " $volumes " in
      *' b3relay '*) ok "$pod: the module is mounted" ;;
      *)
        wrong "$pod: the module is not mounted"
        do_ "kubectl -n $namespace patch its deployment --patch-file envoyfilter/mount.yaml"
        ;;
    esac
  fi
  ask "$pod" 'config_dump?mask=ecds_filters' | received >"$work/received" || true
  said=$(complaint "$pod")
  # Istio's agent puts another filter into the place of a plugin whose image it cannot fetch;
  # of a plugin that was deleted it may still be there.
  missing=0
  ! grep -q -e '^WasmPlugin' -e '^TrafficExtension' "$work/forms" ||
    missing=$(awk '$2 != "Wasm" {n++} END {print n + 0}' "$work/received")
  loaded=no
  ! grep -q '^wasmcustom\.b3relay_' "$work/stats" || loaded=yes
  seen_in=$(count 'direction=.=inbound;.;requests_total') seen_out=$(count 'direction=.=outbound;.;requests_total')
  if [ "$((in_ours + out_ours))" -eq 0 ]; then
    wrong "$pod: no listener has a place for the filter"
    do_ 'apply a form that selects this pod; another EnvoyFilter may be in the way (envoyfilter/README.md)'
  elif [ "$missing" -gt 0 ]; then
    loaded=no
    wrong "$pod: the filter is not there: its image could not be fetched${said:+: $said}"
    remedy "$said"
  elif [ $loaded = no ]; then
    wrong "$pod: the filter is not loaded, on either side${said:+: $said}"
    remedy "$said"
  else
    side "$pod" inbound "$in_ours" "$seen_in" 'requests'
    side "$pod" outbound "$out_ours" "$seen_out" 'calls'
    beside
    url=$(unfetched)
    [ -z "$url" ] || {
      wrong "$pod: $url could not be fetched, and the module from before is still at work: $said"
      remedy "$said"
    }
  fi
  if [ "$in_most" -gt 1 ] || [ "$out_most" -gt 1 ]; then
    wrong "$pod: the filter is there twice: two forms select this pod"
    do_ 'delete one of the forms above'
  fi
  rejected=$(awk -F ': ' '$1 == "listener_manager.lds.update_rejected" {print $2 + 0}' "$work/stats")
  [ "${rejected:-0}" -eq 0 ] || note "$pod: Envoy has refused listeners $rejected times since it started${said:+; the last complaint: $said}"
  [ "$((in_http + out_http))" -eq 0 ] || tracing
  [ $loaded = no ] || { tags; counters; }
}

side() {
  if [ "$3" -eq 0 ]; then
    wrong "$1: $2 has no place for the filter"
    do_ 'see whether the form has both sides, and what `istioctl analyze` says'
  elif [ "$4" -gt 0 ]; then
    ok "$1: $2, $4 $5 seen"
  elif [ -n "$said" ]; then
    wrong "$1: $2, no $5 seen, and the sidecar says: $said"
    remedy "$said"
  else
    note "$1: $2, no $5 seen so far: make a click; if none come, they do not pass the sidecar as plain HTTP"
  fi
}

tracing() {
  if [ "$in_spans" -eq 0 ]; then
    wrong "$pod: requests are not traced"
    do_ 'name a provider of the mesh configuration (extensionProviders) in a Telemetry of the root namespace'
    return
  fi
  case $tracer in
    zipkin) [ "$both" -eq 0 ] && form='B3 (zipkin)' || form='B3 and traceparent (zipkin)' ;;
    opentelemetry) form='traceparent (opentelemetry)' ;;
    *)
      wrong "$pod: the tracing provider is $tracer, whose headers b3relay does not know"
      do_ 'a provider of type zipkin or opentelemetry'
      return
      ;;
  esac
  ok "$pod: traces by $form"
  if [ "$collector" != - ] && ask "$pod" clusters >"$work/clusters" && ! grep -qF "$collector::" "$work/clusters"; then
    wrong "$pod: the sidecar does not know $collector, to which it should report: no trace arrives"
    do_ 'if a Sidecar restricts its egress, add the namespace of the collector to the hosts: istio-system/*'
  fi
  if awk -v share="$sampling" 'BEGIN {exit !(share < 0.005)}'; then
    wrong "$pod: $sampling % of the traces are sampled: none"
    do_ 'randomSamplingPercentage: 100 in the Telemetry, while trying'
  elif awk -v share="$sampling" 'BEGIN {exit !(share <= 10)}'; then
    note "$pod: $sampling % of the traces are sampled: most clicks leave none (randomSamplingPercentage in the Telemetry)"
  else
    ok "$pod: $sampling % of the traces are sampled"
  fi
  overwritten=$(count overwritten_total)
  if [ "$out_spans" -gt 0 ] || [ "$overwritten" -gt 0 ]; then
    wrong "$pod: client spans are on, and overwrite what b3relay copies (seen of $overwritten calls)"
    do_ "kubectl -n $namespace apply -k envoyfilter/no-client-spans; if there is a Telemetry without a selector, add its entry to that"
  else
    ok "$pod: client spans are off"
  fi
}

tags() {
  ask "$pod" 'stats/prometheus?filter=b3relay' >"$work/prometheus" || return 0
  if grep -q 'b3relay_decision___' "$work/prometheus"; then
    note "$pod: labels are parts of names in Prometheus (b3relay_decision___copied___calls_total): extraStatTags (docs/metrics.md)"
  fi
}

# What the decisions about calls mean, those that there were.
counters() {
  explain copied 'calls got the context of their request'
  explain completed 'calls got the rest of a context that they carried in part'
  explain exclusive 'calls without a key got the context of the only request in flight'
  explain token 'calls without a key were found by an identifier'
  explain inferred 'calls without a key were found by what requests do'
  explain present 'calls carried a context of their own, and were left as they are'
  explain no_key 'calls carried nothing to recognise them by: let the application forward x-request-id, or see `keys`'
  explain unknown 'calls named no request that is being served: made long after the answer, or with an ID of their own'
  explain unsure 'calls carried nothing, with several requests in flight: forward x-request-id (docs/attribution.md)'
  explain no_context 'calls were of requests that came without a context: is the caller traced?'
  explain ambiguous 'calls had a request ID that two traces share: let the gateway make the IDs'
  explain conflict 'calls carried a part of some other context'
  explain malformed 'calls carried identifiers that cannot be read (docs/rules.md)'
  explain sampling_only 'calls carried a sampling decision alone (b3), and were left as they are'
  explain outside 'calls went to hosts outside the mesh: `mesh_hosts` (docs/configuration.md)'
  explain too_large 'calls had no room for the context'
  explain off 'calls came while the relay is switched off: `relay`'
  bad evicted_total 'requests were forgotten for lack of room: raise `capacity`'
  bad host_errors_total 'calls to Envoy failed: see the log of istio-proxy'
  sed -n 's/^wasmcustom\.b3relay_key=\.=\(.*\);\.;misconfigured_total: [1-9].*/\1/p' "$work/stats" >"$work/keys"
  while IFS= read -r key; do
    wrong "$pod: the two filters hold \`$key\` differently"
    do_ 'configure both filters alike (envoyfilter/README.md#configure)'
  done <"$work/keys"
}
explain() {
  n=$(count "decision=.=$1;.;calls_total")
  [ "$n" -eq 0 ] || printf '         %s %s: %s\n' "$n" "$1" "$2"
}
bad() {
  n=$(count "$1")
  [ "$n" -eq 0 ] || { wrong "$pod: $n $2"; }
}

for given in "$@"; do
  cut -f 1 "$work/pods" | grep -qx -- "$given" || stop "no running pod $given with a sidecar in $namespace"
done
while IFS= read -r line; do
  name=$(printf '%s\n' "$line" | cut -f 1)
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  elif cut -f 1 "$work/others" | grep -qx -- "$name"; then
    continue
  fi
  sidecar "$name" "$(printf '%s\n' "$line" | cut -f 5)" </dev/null
done <"$work/pods"

if command -v istioctl >/dev/null 2>&1; then
  # Information about EnvoyFilters in general is none about this one.
  istioctl analyze -n "$namespace" 2>/dev/null | grep -E '^(Error|Warning) ' |
    grep -v 'exposes internal implementation details' >"$work/analysis" || true
  while IFS= read -r line; do note "istioctl analyze: $line"; done <"$work/analysis"
else
  note 'istioctl is missing: what `istioctl analyze` would say is not here'
fi

if [ "$wrong" -eq 0 ]; then
  printf '\nAll right.\n'
else
  printf '\nWrong: %s.\n' "$wrong"
  exit 1
fi
