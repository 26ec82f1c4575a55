-- Label's tables in MySQL or MariaDB, as its own steps make them (label contract, sections 1 and 2), in a database with years behind it:
-- keys of participants that were widened, a table that is still latin1, and paths that never got their limit of 500 characters.

create table participants (
    participant_id   bigint unsigned auto_increment primary key,
    participant_code varchar(50) not null unique,
    first_name       varchar(100),
    last_name        varchar(100),
    email            varchar(255),
    notes            text,
    created_at       timestamp default current_timestamp,
    great_puffs      boolean default false
) default character set latin1;

create table projects (
    project_id        int auto_increment primary key,
    project_name      varchar(255) not null unique,
    participant_id    bigint unsigned not null,
    path              text,
    watch_assigned_at timestamp default current_timestamp,
    watch_returned_at timestamp null,
    created_at        timestamp default current_timestamp,
    labelings         json,
    legacy_path       varchar(500) null,
    project_type      enum('legacy', 'dataset_based') default 'legacy',
    analysis_config   json,
    foreign key (participant_id) references participants (participant_id) on delete restrict,
    unique (participant_id, project_name)
);

create table sessions (
    session_id               int auto_increment primary key,
    project_id               int not null,
    session_name             varchar(255) not null,
    status                   varchar(50) default 'Initial',
    keep                     boolean,
    is_visible               tinyint(1) not null default 1,
    bouts                    json,
    verified                 tinyint(1) default 0,
    puffs_verified           tinyint(1) default 0,
    smoking_verified         tinyint(1) default 0,
    start_ns                 bigint not null,
    stop_ns                  bigint not null,
    parent_session_data_path varchar(500) null,
    data_start_offset        bigint null,
    data_end_offset          bigint null,
    dataset_id               int null,
    raw_session_name         varchar(255) null,
    split_config_id          int null,
    unique (project_id, session_name),
    foreign key (project_id) references projects (project_id) on delete cascade,
    index idx_session_dataset (dataset_id),
    index idx_session_raw_name (raw_session_name)
);

create table session_lineage (
    id                int auto_increment primary key,
    child_session_id  int not null,
    parent_session_id int not null,
    split_timestamp   datetime not null default current_timestamp,
    foreign key (child_session_id) references sessions (session_id),
    foreign key (parent_session_id) references sessions (session_id)
);

create table models (
    model_id       int auto_increment primary key,
    name           varchar(255) not null,
    description    text,
    py_filename    varchar(255) not null,
    pt_filename    varchar(255) not null,
    class_name     varchar(255) not null,
    model_settings json default null,
    is_active      tinyint(1) default 1,
    created_at     timestamp default current_timestamp,
    updated_at     timestamp default current_timestamp on update current_timestamp
);

create table raw_datasets (
    dataset_id       int auto_increment primary key,
    dataset_name     varchar(255) not null,
    dataset_hash     varchar(64) not null unique comment 'hash of the content',
    file_path        varchar(500) not null,
    upload_timestamp timestamp default current_timestamp,
    file_size_bytes  bigint,
    session_count    int default 0,
    description      text,
    metadata         json,
    created_at       timestamp default current_timestamp,
    updated_at       timestamp default current_timestamp on update current_timestamp,
    index idx_dataset_hash (dataset_hash),
    index idx_dataset_name (dataset_name)
);

create table raw_dataset_sessions (
    raw_session_id       int auto_increment primary key,
    dataset_id           int not null,
    session_name         varchar(255) not null,
    session_path         varchar(500) not null,
    original_labels_json text,
    file_count           int default 0,
    created_at           timestamp default current_timestamp,
    foreign key (dataset_id) references raw_datasets (dataset_id) on delete cascade,
    index idx_dataset_session (dataset_id, session_name),
    unique key unique_dataset_session (dataset_id, session_name)
);

create table project_dataset_refs (
    ref_id     int auto_increment primary key,
    project_id int not null,
    dataset_id int not null,
    created_at timestamp default current_timestamp,
    foreign key (project_id) references projects (project_id) on delete cascade,
    foreign key (dataset_id) references raw_datasets (dataset_id) on delete cascade,
    unique key unique_project_dataset (project_id, dataset_id),
    index idx_project_refs (project_id),
    index idx_dataset_refs (dataset_id)
);

create table project_split_configs (
    config_id        int auto_increment primary key,
    project_id       int not null,
    dataset_id       int not null,
    raw_session_name varchar(255) not null,
    split_strategy   enum('time_based', 'bout_based', 'custom') default 'time_based',
    split_parameters json,
    created_at       timestamp default current_timestamp,
    updated_at       timestamp default current_timestamp on update current_timestamp,
    foreign key (project_id) references projects (project_id) on delete cascade,
    foreign key (dataset_id) references raw_datasets (dataset_id) on delete cascade,
    index idx_project_splits (project_id),
    index idx_dataset_splits (dataset_id)
);
