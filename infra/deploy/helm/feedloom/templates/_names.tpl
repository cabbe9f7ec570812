{{- define "feedloom.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "feedloom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "feedloom.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "feedloom.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What tells this release's pods from all others. */}}
{{- define "feedloom.selector" -}}
app.kubernetes.io/name: {{ include "feedloom.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of every object. Context: root, component. */}}
{{- define "feedloom.labels" -}}
{{ include "feedloom.selector" .root }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: feedloom
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Name, namespace and labels. Context: root, component, name. */}}
{{- define "feedloom.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "feedloom.labels" . | nindent 2 }}
{{- end -}}

{{/* Context: root, image, and a tag that comes before the release's. */}}
{{- define "feedloom.image" -}}
{{- $image := .root.Values.image -}}
{{- $digest := get $image.digests .image -}}
{{- if .tag -}}
{{- printf "%s/%s:%s" $image.registry .image .tag -}}
{{- else if $digest -}}
{{- printf "%s/%s@%s" $image.registry .image $digest -}}
{{- else -}}
{{- printf "%s/%s:%s" $image.registry .image (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The service account of a component. Context: root, component. */}}
{{- define "feedloom.account" -}}
{{- printf "%s-%s" (include "feedloom.fullname" .root) .component -}}
{{- end -}}

{{/* A name of the generated file, as it is in this deployment. Context: root, name. */}}
{{- define "feedloom.kafkaName" -}}
{{- .name | replace "{prefix}" .root.Values.kafka.topicPrefix | replace "{group}" .root.Values.kafka.workerGroup -}}
{{- end -}}

{{- define "feedloom.bootstrap" -}}
{{- if eq .Values.kafka.mode "strimzi" -}}
{{- printf "%s-kafka-bootstrap.%s.svc:9093" (include "feedloom.cluster" .) .Release.Namespace -}}
{{- else -}}
{{- required "kafka.external.bootstrapServers: where is Kafka?" .Values.kafka.external.bootstrapServers -}}
{{- end -}}
{{- end -}}

{{- define "feedloom.cluster" -}}
{{- printf "%s-kafka" (include "feedloom.fullname" .) -}}
{{- end -}}

{{/* Whom Kafka knows a component as. Context: root, component. */}}
{{- define "feedloom.kafkaUser" -}}
{{- $default := printf "%s-%s" (include "feedloom.fullname" .root) .component -}}
{{- if eq .root.Values.kafka.mode "external" -}}
{{- get .root.Values.kafka.external.usernames .component | default $default -}}
{{- else -}}
{{- $default -}}
{{- end -}}
{{- end -}}

{{/* The Secret with a component's password. Context: root, component. */}}
{{- define "feedloom.kafkaSecret" -}}
{{- if eq .root.Values.kafka.mode "strimzi" -}}
{{- include "feedloom.kafkaUser" . -}}
{{- else -}}
{{- $given := get .root.Values.secrets.kafka .component | default dict -}}
{{- include "feedloom.secret" (dict "root" .root "name" (printf "kafka-%s" .component) "given" $given) -}}
{{- end -}}
{{- end -}}

{{/* The name of a Secret that is there, or that External Secrets makes; else nothing.
     Context: root, name, given. */}}
{{- define "feedloom.secret" -}}
{{- if .given.existing -}}
{{- .given.existing -}}
{{- else if .given.remote -}}
{{- printf "%s-%s" (include "feedloom.fullname" .root) .name -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the brokers' certificates; nothing: the system's are good enough. */}}
{{- define "feedloom.kafkaAuthority" -}}
{{- if eq .Values.kafka.mode "strimzi" -}}
{{- printf "%s-cluster-ca-cert" (include "feedloom.cluster" .) -}}
{{- else -}}
{{- .Values.kafka.external.caSecret.name -}}
{{- end -}}
{{- end -}}

{{- define "feedloom.protocol" -}}
{{- if eq .Values.kafka.mode "strimzi" }}SASL_SSL{{ else }}{{ .Values.kafka.external.securityProtocol }}{{ end -}}
{{- end -}}

{{/* A pool with the defaults below it. Context: root, pool. */}}
{{- define "feedloom.pool" -}}
{{- mergeOverwrite (deepCopy .root.Values.workers.defaults) (deepCopy .pool) | toJson -}}
{{- end -}}

{{/* From SIGTERM until the kernel ends a worker: its drain, and what comes after it: the last commit,
     leaving the group, the engine's end, and the last telemetry. Context: a pool. */}}
{{- define "feedloom.workerGrace" -}}
{{- add (ceil .settings.drain_timeout_s) 45 -}}
{{- end -}}

{{- define "feedloom.gatewayGrace" -}}
{{- add .Values.gateway.withdrawSeconds (ceil .Values.gateway.settings.drain_timeout_s) 30 -}}
{{- end -}}

{{/* The least number of workers there will be, over all pools; "0": there may be none at all. */}}
{{- define "feedloom.leastWorkers" -}}
{{- $least := 0 -}}
{{- range $name, $pool := .Values.workers.pools -}}
{{- $one := include "feedloom.pool" (dict "root" $ "pool" $pool) | fromJson -}}
{{- $least = add $least (ternary $one.autoscaling.minReplicas $one.replicas $one.autoscaling.enabled | int) -}}
{{- end -}}
{{- $least -}}
{{- end -}}

{{- define "feedloom.mostWorkers" -}}
{{- $most := 0 -}}
{{- range $name, $pool := .Values.workers.pools -}}
{{- $one := include "feedloom.pool" (dict "root" $ "pool" $pool) | fromJson -}}
{{- $most = add $most (ternary $one.autoscaling.maxReplicas $one.replicas $one.autoscaling.enabled | int) -}}
{{- end -}}
{{- $most -}}
{{- end -}}

{{- define "feedloom.mostGateways" -}}
{{- $gateway := .Values.gateway -}}
{{- $most := ternary $gateway.autoscaling.maxReplicas $gateway.replicas $gateway.autoscaling.enabled | int -}}
{{- if $gateway.canary.enabled -}}{{- $most = add $most $gateway.canary.replicas -}}{{- end -}}
{{- if .Values.console.enabled -}}{{- $most = add $most .Values.console.replicas -}}{{- end -}}
{{- $most -}}
{{- end -}}
