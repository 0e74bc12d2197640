{{/* The prefix of all names. The command line computes the same from the release's name: `merlin_cli.site`. */}}
{{- define "merlin.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a selector matches: never a version, which would change on upgrade. Takes (dict "root" $ "component" "…"). */}}
{{- define "merlin.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "merlin.labels" -}}
{{ include "merlin.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: merlin
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* repository[:tag][@digest] of (dict "image" … "default" "tag"). */}}
{{- define "merlin.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .default .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The same of an image of this project: (dict "root" $ "image" … "part" "operator" or "agent"). Nobody publishes them, so
a name that was made up here could be anybody's. */}}
{{- define "merlin.image.own" -}}
{{- $repository := .image.repository -}}
{{- if not $repository -}}
{{- $place := required "image.repository: expected where your cluster pulls the images operator and agent from, found nothing; build them with `tools/images --repository registry.example.org/team/merlin`, push both, and give --set image.repository=registry.example.org/team/merlin" .root.Values.image.repository -}}
{{- $repository = printf "%s/%s" $place .part -}}
{{- end -}}
{{- $image := merge (dict "repository" $repository) .image -}}
{{- include "merlin.image" (dict "image" $image "default" .root.Chart.AppVersion) -}}
{{- end -}}

{{- define "merlin.operator.serviceAccount" -}}
{{- if .Values.operator.serviceAccount.create -}}
{{- default (printf "%s-operator" (include "merlin.fullname" .)) .Values.operator.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.operator.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Names of the three Secrets that pods and agents read: the user's own, or those that the bootstrap Job makes. */}}
{{- define "merlin.secret" -}}
{{- $existing := index .root.Values.secrets.existing .for -}}
{{- default (printf "%s-%s" (include "merlin.fullname" .root) .for) $existing -}}
{{- end -}}

{{/* "true" where the bootstrap Job runs. */}}
{{- define "merlin.bootstrap" -}}
{{- $given := compact (values .Values.secrets.existing) -}}
{{- if and (gt (len $given) 0) (lt (len $given) 3) -}}
{{- fail "secrets.existing: give broker, operator and agents, or none of them: they hold each other's counterparts" -}}
{{- end -}}
{{- if and .Values.secrets.bootstrap (eq (len $given) 0) -}}true{{- end -}}
{{- end -}}

{{/* The broker's address inside the cluster. */}}
{{- define "merlin.nats.address" -}}
{{- printf "tls://%s-nats.%s.svc:%d" (include "merlin.fullname" .) .Release.Namespace (int .Values.nats.service.port) -}}
{{- end -}}

{{/* Every name in the broker's certificate, one a line. */}}
{{- define "merlin.nats.names" -}}
{{- $service := printf "%s-nats" (include "merlin.fullname" .) -}}
{{- $names := list "localhost" "127.0.0.1" -}}
{{- range $host := list $service (printf "*.%s-headless" $service) -}}
{{- if not (hasPrefix "*" $host) }}{{ $names = append $names $host }}{{ end -}}
{{- $names = append $names (printf "%s.%s.svc" $host $.Release.Namespace) -}}
{{- $names = append $names (printf "%s.%s.svc.%s" $host $.Release.Namespace $.Values.clusterDomain) -}}
{{- end -}}
{{- with .Values.nats.externalAddress -}}
{{- $names = append $names (regexReplaceAll ":[0-9]+$" (trimPrefix "tls://" .) "" | trimPrefix "[" | trimSuffix "]") -}}
{{- end -}}
{{- concat $names .Values.nats.tls.extraNames | uniq | join "\n" -}}
{{- end -}}

{{/* Local keeps the agents' addresses. Otherwise they arrive under a node's, which networkPolicy.agentCIDRs does not name. */}}
{{- define "merlin.nats.trafficPolicy" -}}
{{- $everybody := or (has "0.0.0.0/0" .Values.networkPolicy.agentCIDRs) (has "::/0" .Values.networkPolicy.agentCIDRs) -}}
{{- $told := or (not .Values.networkPolicy.enabled) $everybody -}}
{{- default (ternary "Cluster" "Local" $told) .Values.nats.service.externalTrafficPolicy -}}
{{- end -}}

{{/* What the streams may take on all servers together, in nats-server's notation. */}}
{{- define "merlin.nats.accountStore" -}}
{{- $size := .Values.nats.maxFileStore -}}
{{- printf "%d%s" (mul (int (regexFind "^[0-9]+" $size)) (int .Values.nats.replicas)) (regexReplaceAll "^[0-9]+" $size "") -}}
{{- end -}}

{{/* Sizes in bytes: as nats-server reads them (K is 1000; KB, Ki and KiB are 1024) and as Kubernetes does (Ki is 1024). */}}
{{- define "merlin.bytes.nats" -}}
{{- $unit := regexReplaceAll "^[0-9]+" . "" | lower -}}
{{- $base := ternary 1000 1024 (le (len $unit) 1) -}}
{{- include "merlin.bytes" (list (regexFind "^[0-9]+" .) $base $unit) -}}
{{- end -}}

{{- define "merlin.bytes.kubernetes" -}}
{{- $unit := regexReplaceAll "^[0-9.]+" . "" | lower -}}
{{- $base := ternary 1024 1000 (hasSuffix "i" $unit) -}}
{{- include "merlin.bytes" (list (regexFind "^[0-9.]+" .) $base $unit) -}}
{{- end -}}

{{- define "merlin.bytes" -}}
{{- $bytes := float64 (index . 0) -}}
{{- $power := dict "" 0 "k" 1 "m" 2 "g" 3 "t" 4 "p" 5 -}}
{{- range until (int (get $power (trunc 1 (index . 2)))) -}}
{{- $bytes = mulf $bytes (float64 (index $ 1)) -}}
{{- end -}}
{{- int64 $bytes -}}
{{- end -}}

{{/* PodSecurity `restricted`, for a whole pod and for each container. */}}
{{- define "merlin.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "merlin.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where a pod may run, from (nodeSelector, tolerations, affinity, priorityClassName) of its component. */}}
{{- define "merlin.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A rule of egress: a policy sees the API server's own address and port behind its Service, which differ between clusters. */}}
{{- define "merlin.toApiServer" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.apiServerCIDRs }}
  to:
    {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* Rules of egress of who speaks to the API server and to NATS: the operator, and the test pod. */}}
{{- define "merlin.operatorEgress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{ include "merlin.toApiServer" . }}
- ports: [{port: nats, protocol: TCP}]
  to:
    - podSelector:
        matchLabels:
          {{- include "merlin.selector" (dict "root" . "component" "nats") | nindent 10 }}
{{- end -}}

{{- define "merlin.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
