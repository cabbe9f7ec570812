{{/* What every pod of this chart has. Context: root, component. */}}
{{- define "feedloom.pod" -}}
serviceAccountName: {{ include "feedloom.account" . }}
automountServiceAccountToken: false
# Kubernetes would make FEEDLOOM_GATEWAY_PORT and the like of the services here, which the settings
# refuse, as they refuse all that they do not know.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .root.Values.pods.user }}
  runAsGroup: {{ .root.Values.pods.user }}
  fsGroup: {{ .root.Values.pods.user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a pod. Context: root, component, and perhaps job, track, extra labels
     and annotations. */}}
{{- define "feedloom.podMetadata" -}}
labels:
  {{- include "feedloom.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .root.Values.pods.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .root.Values.mesh.enabled }}
  {{- if eq .root.Values.mesh.mode "ambient" }}
  istio.io/dataplane-mode: ambient
  {{- else }}
  # A sidecar that is not told to end keeps a job from ending.
  sidecar.istio.io/inject: {{ ternary "false" "true" (default false .job) | quote }}
  {{- end }}
  {{- end }}
{{- $annotations := merge (dict) (default dict .annotations) .root.Values.pods.annotations }}
{{- if and .root.Values.mesh.enabled (eq .root.Values.mesh.mode "sidecar") (not .job) }}
{{- $ports := include "feedloom.kafkaPorts" .root | fromJsonArray }}
{{- $_ := set $annotations "traffic.sidecar.istio.io/excludeOutboundPorts" (join "," $ports) }}
{{- $_ := set $annotations "proxy.istio.io/config" "{\"holdApplicationUntilProxyStarts\": true}" }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where brokers listen, as an array of JSON. */}}
{{- define "feedloom.kafkaPorts" -}}
{{- if eq .Values.kafka.mode "strimzi" -}}
{{- list 9093 | toJson -}}
{{- else -}}
{{- .Values.networkPolicy.externalKafka.ports | toJson -}}
{{- end -}}
{{- end -}}

{{- define "feedloom.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: {{ .Values.pods.user }}
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* Requests and limits; GPUs are both. Context: resources, gpus. */}}
{{- define "feedloom.resources" -}}
{{- $limits := deepCopy .resources.limits -}}
{{- $requests := deepCopy .resources.requests -}}
{{- if .gpus -}}
{{- $_ := set $limits "nvidia.com/gpu" (int .gpus) -}}
{{- $_ := set $requests "nvidia.com/gpu" (int .gpus) -}}
{{- end -}}
resources:
  requests:
    {{- toYaml $requests | nindent 4 }}
  limits:
    {{- toYaml $limits | nindent 4 }}
{{- end -}}

{{/* Context: root, component, reads: names of secrets besides Kafka's, sections: settings by
     section, artifacts: whether versions' files are read or written. */}}
{{- define "feedloom.env" -}}
{{- $values := .root.Values -}}
{{- $protocol := include "feedloom.protocol" .root -}}
- name: FEEDLOOM_HOME
  value: /var/lib/feedloom
# Libraries keep their caches there: nothing else may be written.
- name: HOME
  value: /var/lib/feedloom
- name: USER
  value: feedloom
- name: FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS
  value: {{ include "feedloom.bootstrap" .root | quote }}
{{- with $values.kafka.topicPrefix }}
- name: FEEDLOOM_KAFKA__TOPIC_PREFIX
  value: {{ . | quote }}
{{- end }}
- name: FEEDLOOM_KAFKA__REPLICATION_FACTOR
  value: {{ $values.kafka.replicationFactor | int | quote }}
- name: FEEDLOOM_KAFKA__PARTITIONS
  value: {{ $values.kafka.partitions | int | quote }}
- name: FEEDLOOM_KAFKA__SECURITY_PROTOCOL
  value: {{ $protocol }}
{{- if hasPrefix "SASL" $protocol }}
- name: FEEDLOOM_KAFKA__SASL_MECHANISM
  value: {{ ternary "SCRAM-SHA-512" $values.kafka.external.saslMechanism (eq $values.kafka.mode "strimzi") }}
- name: FEEDLOOM_KAFKA__SASL_USERNAME
  value: {{ include "feedloom.kafkaUser" . | quote }}
- name: FEEDLOOM_KAFKA__SASL_PASSWORD_FILE
  value: /etc/feedloom/kafka/password
{{- end }}
{{- if and (hasSuffix "SSL" $protocol) (include "feedloom.kafkaAuthority" .root) }}
- name: FEEDLOOM_KAFKA__SSL_CAFILE
  value: /etc/feedloom/kafka-ca/ca.crt
{{- end }}
- name: FEEDLOOM_WORKER__GROUP
  value: {{ $values.kafka.workerGroup | quote }}
- name: FEEDLOOM_TELEMETRY__LOG_FORMAT
  value: json
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
{{- with $values.telemetry.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_METRIC_EXPORT_INTERVAL
  value: {{ $values.telemetry.metricIntervalMs | int | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.namespace.name=%s,k8s.pod.name=$(POD_NAME)%s" $.root.Release.Namespace (ternary (printf ",deployment.environment.name=%s" $values.telemetry.environment) "" (ne $values.telemetry.environment "")) | quote }}
{{- end }}
{{- if .artifacts }}
- name: FEEDLOOM_ARTIFACT_STORE__URL
  value: {{ default "/var/lib/feedloom-artifacts" $values.artifacts.url | quote }}
{{- with $values.artifacts.endpointUrl }}
- name: FEEDLOOM_ARTIFACT_STORE__ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- with $values.artifacts.endpointUrl }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with $values.artifacts.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- range $name := .reads }}
{{- if include "feedloom.secret" (dict "root" $.root "name" $name "given" (get $values.secrets $name)) }}
{{- if eq $name "signingKey" }}
- name: FEEDLOOM_ARTIFACT_STORE__SIGNING_KEY
  value: /etc/feedloom/signingkey/private.pem
{{- else if eq $name "publicKey" }}
- name: FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY
  value: /etc/feedloom/publickey/public.pem
{{- else if eq $name "hubToken" }}
- name: HF_TOKEN_PATH
  value: /etc/feedloom/hubtoken/token
{{- else if eq $name "objectStore" }}
- name: AWS_SHARED_CREDENTIALS_FILE
  value: /etc/feedloom/objectstore/credentials
{{- end }}
{{- end }}
{{- end }}
{{- range $section, $settings := .sections }}
{{- range $name, $value := $settings }}
- name: {{ printf "FEEDLOOM_%s__%s" (upper $section) (upper $name) }}
  value: {{ include "feedloom.value" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A setting as text: whole numbers as such, since Helm reads 65536 as 65536.0; lists as JSON. */}}
{{- define "feedloom.value" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else if or (kindIs "slice" .) (kindIs "map" .) -}}
{{- toJson . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* Of the container. Context as of feedloom.env, and readOnly: versions' files are only read. */}}
{{- define "feedloom.mounts" -}}
{{- $values := .root.Values -}}
- {name: home, mountPath: /var/lib/feedloom}
- {name: tmp, mountPath: /tmp}
{{- if .shm }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if hasPrefix "SASL" (include "feedloom.protocol" .root) }}
- {name: kafka, mountPath: /etc/feedloom/kafka, readOnly: true}
{{- end }}
{{- if include "feedloom.kafkaAuthority" .root }}
- {name: kafka-ca, mountPath: /etc/feedloom/kafka-ca, readOnly: true}
{{- end }}
{{- if and .artifacts (not $values.artifacts.url) }}
- {name: artifacts, mountPath: /var/lib/feedloom-artifacts, subPath: artifacts, readOnly: {{ default false .readOnly }}}
{{- end }}
{{- if and .files (not $values.artifacts.filesUrl) }}
- {name: artifacts, mountPath: /var/lib/feedloom-files, subPath: files}
{{- end }}
{{- range $name := .reads }}
{{- if include "feedloom.secret" (dict "root" $.root "name" $name "given" (get $values.secrets $name)) }}
- {name: {{ lower $name }}, mountPath: /etc/feedloom/{{ lower $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of the pod. Context as of feedloom.mounts, and scratch: the size of home, or claim: its volume. */}}
{{- define "feedloom.volumes" -}}
{{- $values := .root.Values -}}
- name: home
  {{- if .claim }}
  persistentVolumeClaim: {claimName: {{ .claim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .scratch }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ default "2Gi" .tmp }}}
{{- with .shm }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}
{{- if hasPrefix "SASL" (include "feedloom.protocol" .root) }}
- name: kafka
  secret:
    secretName: {{ required (printf "secrets.kafka.%s: where is this component's Kafka password?" .component) (include "feedloom.kafkaSecret" .) }}
    defaultMode: 0440
    items: [{key: password, path: password}]
{{- end }}
{{- with include "feedloom.kafkaAuthority" .root }}
- name: kafka-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items: [{key: {{ ternary "ca.crt" $values.kafka.external.caSecret.key (eq $values.kafka.mode "strimzi") }}, path: ca.crt}]
{{- end }}
{{- if or (and .artifacts (not $values.artifacts.url)) (and .files (not $values.artifacts.filesUrl)) }}
- name: artifacts
  persistentVolumeClaim: {claimName: {{ include "feedloom.fullname" .root }}-artifacts}
{{- end }}
{{- $keys := dict "signingKey" "private.pem" "publicKey" "public.pem" "hubToken" "token" "objectStore" "credentials" }}
{{- range $name := .reads }}
{{- with include "feedloom.secret" (dict "root" $.root "name" (kebabcase $name) "given" (get $values.secrets $name)) }}
- name: {{ lower $name }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items: [{key: {{ get $keys $name }}, path: {{ get $keys $name }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* Nodes for a component. Context: nodeSelector, tolerations, and perhaps gpus. */}}
{{- define "feedloom.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .tolerations -}}
{{- if .gpus -}}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") -}}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Pods of a component apart from each other. Context: root, labels: what they all have, when. */}}
{{- define "feedloom.spread" -}}
topologySpreadConstraints:
  {{- range list (dict "key" "topology.kubernetes.io/zone" "when" "ScheduleAnyway") (dict "key" "kubernetes.io/hostname" "when" .when) }}
  - maxSkew: 1
    topologyKey: {{ .key }}
    whenUnsatisfiable: {{ .when }}
    labelSelector:
      matchLabels:
        {{- toYaml $.labels | nindent 8 }}
    # Nodes that would not take the pod anyway do not count.
    nodeTaintsPolicy: Honor
    # Old and new pods of a rollout are counted apart.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}

{{/* Settings a component may not be given: the chart sets them. Context: settings, taken, where. */}}
{{- define "feedloom.refuse" -}}
{{- range $name := .taken -}}
{{- if hasKey $.settings $name -}}
{{- fail (printf "%s.%s is the chart's to set" $.where $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
