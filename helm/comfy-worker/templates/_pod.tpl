{{/* The pod of both modes. Call with (dict "root" $ "restartPolicy" "Always"). */}}
{{- define "comfy-worker.podTemplate" -}}
{{- $ := .root }}
{{- $values := $.Values -}}
metadata:
  labels:
    {{- include "comfy-worker.labels" $ | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: worker
    checksum/config: {{ include "comfy-worker.variables" $ | sha256sum }}
    {{- if $values.extraFiles }}
    checksum/files: {{ toYaml $values.extraFiles | sha256sum }}
    {{- end }}
    {{- if and (eq $values.mode "job") $values.job.keepOnNode }}
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  restartPolicy: {{ .restartPolicy }}
  serviceAccountName: {{ include "comfy-worker.serviceAccountName" $ }}
  automountServiceAccountToken: {{ $values.serviceAccount.automountToken }}
  # A Service of the name comfy-worker would set COMFY_WORKER_PORT, which the worker takes for a setting.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $values.grace.seconds $values.grace.marginSeconds }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := $values.tolerations }}
  {{- if and (gt (int $values.gpu.count) 0) $values.gpu.toleration }}
  {{- $tolerations = prepend $tolerations (dict "key" $values.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $own := dict "labelSelector" (dict "matchLabels" (include "comfy-worker.selectorLabels" $ | fromYaml)) }}
    {{- list (ternary . (merge $own .) (hasKey . "labelSelector")) | toYaml | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- with $values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    {{- include "comfy-worker.container" $ | nindent 4 }}
  volumes:
    {{- include "comfy-worker.volumes" $ | nindent 4 }}
{{- end }}

{{- define "comfy-worker.container" -}}
- name: worker
  image: {{ include "comfy-worker.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [serve]
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  envFrom:
    - configMapRef:
        name: {{ include "comfy-worker.fullname" . }}
    {{- with .Values.extraEnvFrom }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    {{- include "comfy-worker.env" . | nindent 4 }}
  ports:
    - name: admin
      containerPort: {{ .Values.admin.port }}
      protocol: TCP
  # /readyz answers 503 while the worker boots and while it drains, /livez as long as the process turns.
  startupProbe:
    httpGet: {path: /readyz, port: admin}
    {{- toYaml .Values.probes.startup | nindent 4 }}
  readinessProbe:
    httpGet: {path: /readyz, port: admin}
    {{- toYaml .Values.probes.readiness | nindent 4 }}
  livenessProbe:
    httpGet: {path: /livez, port: admin}
    {{- toYaml .Values.probes.liveness | nindent 4 }}
  {{- $resources := deepCopy .Values.resources }}
  {{- if gt (int .Values.gpu.count) 0 }}
  {{- $gpu := dict .Values.gpu.resource (int .Values.gpu.count) }}
  {{- $resources = mustMergeOverwrite $resources (dict "requests" $gpu "limits" $gpu) }}
  {{- end }}
  resources:
    {{- toYaml $resources | nindent 4 }}
  volumeMounts:
    {{- include "comfy-worker.mounts" . | nindent 4 }}
{{- end }}

{{- define "comfy-worker.env" -}}
- name: COMFY_WORKER_WORKER_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: HOME
  value: /tmp
- name: COMFY_WORKER_AMQP_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.broker.existingSecret }}
      key: {{ .Values.broker.urlKey }}
{{- with .Values.broker.managementUrlKey }}
- name: COMFY_WORKER_AMQP_MANAGEMENT_URL
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.broker.existingSecret }}
      key: {{ . }}
{{- end }}
{{- with .Values.admin.existingSecret }}
- name: COMFY_WORKER_ADMIN_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.admin.tokenKey }}
{{- end }}
{{- if .Values.store.existingSecret }}
{{- $keys := dict "AWS_ACCESS_KEY_ID" .Values.store.accessKeyIdKey "AWS_SECRET_ACCESS_KEY" .Values.store.secretAccessKeyKey "AWS_SESSION_TOKEN" .Values.store.sessionTokenKey }}
{{- range $name, $key := $keys }}
{{- if $key }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.store.existingSecret }}
      key: {{ $key }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "comfy-worker.mounts" -}}
- name: scratch
  mountPath: /tmp
  subPath: tmp
{{- range .Values.comfyui.writable }}
- name: scratch
  mountPath: {{ $.Values.comfyui.path }}/{{ . }}
  subPath: comfyui/{{ . }}
{{- end }}
- name: state
  mountPath: {{ .Values.state.path }}
{{- if ne .Values.models.type "none" }}
- name: models
  mountPath: {{ .Values.comfyui.path }}/models
  readOnly: {{ .Values.models.readOnly }}
{{- end }}
{{- if .Values.shm.sizeLimit }}
- name: shm
  mountPath: /dev/shm
{{- end }}
{{- if .Values.extraFiles }}
- name: files
  mountPath: {{ .Values.extraFilesPath }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "comfy-worker.volumes" -}}
- name: scratch
  emptyDir:
    {{- with .Values.scratch.medium }}
    medium: {{ . }}
    {{- end }}
    sizeLimit: {{ .Values.scratch.sizeLimit }}
- name: state
  {{- include "comfy-worker.source" (dict "volume" .Values.state "claim" .Values.state.existingClaim) | nindent 2 }}
{{- if ne .Values.models.type "none" }}
- name: models
  {{- include "comfy-worker.source" (dict "volume" .Values.models "claim" (include "comfy-worker.modelsClaim" .)) | nindent 2 }}
{{- end }}
{{- if .Values.shm.sizeLimit }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.shm.sizeLimit }}
{{- end }}
{{- if .Values.extraFiles }}
- name: files
  configMap:
    name: {{ include "comfy-worker.fullname" . }}-files
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "comfy-worker.source" -}}
{{- if eq .volume.type "emptyDir" -}}
{{- if hasKey .volume "size" -}}
emptyDir:
  sizeLimit: {{ .volume.size }}
{{- else -}}
emptyDir: {}
{{- end }}
{{- else if eq .volume.type "hostPath" -}}
hostPath:
  path: {{ .volume.hostPath }}
  type: DirectoryOrCreate
{{- else -}}
persistentVolumeClaim:
  claimName: {{ .claim }}
{{- end }}
{{- end }}
